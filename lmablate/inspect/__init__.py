"""Looking inside a model without an ablation: at initialisation, at where a step's time goes, at decoding."""
