"""Every numeric key, and the values at which it loses its effect or contradicts another key.

`effect` is a sentence for readers. The three tuples hold overrides that reach such a value: the command is `refused`, a
notice is `logged` (limits.py), or the run is the `same` as without the key. A key without any of them acts at every value of
its type. tests/test_limits.py tries them all, and finds the keys in the schema and in the signatures of the components.
"""

from typing import NamedTuple


class Limit(NamedTuple):
    """The limits of one numeric key."""

    effect: str
    refused: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    same: tuple[str, ...] = ()


_SIZE = "a size: every value is another model; 0 is none"
_LOSS = "the weight of a loss: null is off, and 0 is not taken"
_SEED = "other draws at every value"
_MLA, _T5, _LONG = "attention=mla", "posemb=t5", "posemb=rope_longrope"
_TOP, _CHOICE = "ffn=token_choice", "ffn=expert_choice"
_SPANS = "objective=span_corruption"

LIMITS: dict[str, Limit] = {
    "seed": Limit("none beside both of init_seed and data_seed", refused=("seed=1 init_seed=2 data_seed=3",)),
    "init_seed": Limit(_SEED),
    "data_seed": Limit(_SEED),
    # model
    "model.d_model": Limit(_SIZE, refused=("model.d_model=0",)),
    "model.n_layers": Limit(_SIZE, refused=("model.n_layers=0",)),
    "model.context_length": Limit("of 1 token there is nothing to attend to", logged=("model.context_length=1",)),
    "model.dropout": Limit("0 is none", refused=("model.dropout=1.0",)),
    "model.init_std": Limit("acts on the token tables whatever draws the branches", refused=("model.init_std=0.0",)),
    "model.head_std": Limit(
        "null is init_std", refused=("model.head_std=0.0",), logged=("model.head_std=0.02 model.tie_embeddings=true",)
    ),
    "model.embedding_std": Limit("null is init_std", refused=("model.embedding_std=0.0",)),
    "model.embedding_scale": Limit("1 is none", same=("model.embedding_scale=1.0",)),
    "model.logit_scale": Limit("1 is none", same=("model.logit_scale=1.0",)),
    "model.n_encoder_layers": Limit(_SIZE),
    "model.n_distinct_layers": Limit("as many as layers is a block a layer", refused=("model.n_distinct_layers=4",)),
    "model.embedding_dim": Limit("as wide as d_model it still adds a matrix"),
    "model.segments": Limit("only the first kind of text is ever read", logged=("model.segments=2",)),
    "model.n_heads": Limit(_SIZE, refused=("model.n_heads=0",)),
    "model.n_kv_heads": Limit("as many as query heads is null", same=("model.n_kv_heads=4",)),
    "model.head_dim": Limit("d_model / n_heads is null", same=("model.head_dim=32",)),
    "model.d_ff": Limit("none beside ff_ratio", refused=("model.d_ff=64 model.ff_ratio=2.0",)),
    "model.ff_ratio": Limit("none beside d_ff", refused=("model.ff_ratio=2.0 model.d_ff=64",)),
    "model.gated_scale": Limit("none without a gate", refused=("activation=gelu model.gated_scale=1.0",)),
    "aspect_ratio.ratio": Limit("null leaves the sizes alone", refused=("aspect_ratio.ratio=0.0",)),
    "activation.fn.alpha": Limit("another function at every value"),
    "norm.eps": Limit("acts the less the smaller it is", refused=("norm.eps=0.0",)),
    "stability.qk_norm.eps": Limit("acts the less the smaller it is"),
    "stability.v_norm.eps": Limit("acts the less the smaller it is"),
    "stability.z_loss": Limit(_LOSS, refused=("stability.z_loss=0.0",)),
    "stability.attention_soft_cap": Limit(
        "acts the less the larger; null is off", ("stability.attention_soft_cap=0.0",)
    ),
    "stability.final_soft_cap": Limit("acts the less the larger; null is off", ("stability.final_soft_cap=0.0",)),
    # attention
    "attention.scale": Limit("null is 1 / sqrt(head_dim)", refused=("attention.scale=0.0",)),
    "attention.window": Limit(
        "as long as a text it reads everything",
        refused=("attention=pattern attention.pattern=g",),
        logged=("attention=sliding_window attention.window=128", "attention=pattern attention.window=500"),
    ),
    "attention.local_per_global": Limit(
        "as many as layers leave none that reads everything",
        logged=("attention=interleaved attention.local_per_global=4",),
    ),
    "attention.kv_rank": Limit(
        "wider than keys and values it still passes a norm", refused=(f"{_MLA} attention.kv_rank=0",)
    ),
    "attention.q_rank": Limit("null is one matrix"),
    "attention.rope_head_dim": Limit("has queries and keys of its own, turned or not"),
    "attention.v_head_dim": Limit("null is head_dim"),
    "attention.norm_eps": Limit("acts the less the smaller it is"),
    # posemb
    "posemb.rope_theta": Limit(
        "a single pair of channels turns by 1 whatever it is",
        logged=("posemb.rope_theta=500.0 model.head_dim=2",),
    ),
    "posemb.rotary_fraction": Limit(
        "counts whole channels, in pairs",
        refused=("posemb.rotary_fraction=1.0",),
        logged=("posemb.rotary_fraction=0.26",),
    ),
    "posemb.factor": Limit("1 turns as plain rope does", refused=("posemb=rope_linear posemb.factor=1.0",)),
    "posemb.original_length": Limit(
        "a text that is no longer is turned as by plain rope",
        refused=("posemb=rope_dynamic posemb.original_length=128",),
    ),
    "posemb.beta_fast": Limit(
        "moves the ramp by whole pairs; below beta_slow there is none",
        refused=("posemb=rope_yarn posemb.beta_fast=0.5",),
    ),
    "posemb.beta_slow": Limit(
        "moves the ramp by whole pairs; above beta_fast there is none",
        refused=("posemb=rope_yarn posemb.beta_slow=33.0",),
    ),
    "posemb.low_freq_factor": Limit(
        "at or above high_freq_factor there is no ramp", ("posemb=rope_llama3 posemb.low_freq_factor=4.0",)
    ),
    "posemb.high_freq_factor": Limit(
        "at or below low_freq_factor there is no ramp", ("posemb=rope_llama3 posemb.high_freq_factor=1.0",)
    ),
    "posemb.short_factor": Limit("for texts up to original_length", logged=(f"{_LONG} posemb.short_factor=2.0",)),
    "posemb.long_factor": Limit(
        "for texts beyond original_length",
        logged=(f"{_LONG} posemb.long_factor=2.0 posemb.original_length=500 posemb.short_factor=3.0",),
    ),
    "posemb.attention_factor": Limit("null is the published one"),
    "posemb.theta": Limit("acts from the second pair of channels on"),
    "posemb.scale": Limit("acts at every value", refused=("posemb=sinusoidal posemb.scale=0.0",)),
    "posemb.n_buckets": Limit(
        "as many exact ones as tokens leave nothing for the rest",
        logged=(f"{_T5} posemb.n_buckets=256 posemb.max_distance=200",),
    ),
    "posemb.max_distance": Limit(
        "not reached where every distance has a bucket of its own",
        refused=(f"{_T5} posemb.max_distance=16",),
        logged=(f"{_T5} posemb.max_distance=200 posemb.n_buckets=256",),
    ),
    # ffn
    "ffn.n_experts": Limit(
        "one expert is met by every token",
        refused=(f"{_TOP} ffn.n_experts=1 ffn.k=1 ffn.normalise=false",),
        logged=("ffn=hash ffn.n_experts=1 ffn.k=1",),
    ),
    "ffn.k": Limit(
        "all experts leave no choice, and nothing to balance",
        refused=(f"{_TOP} ffn.k=9", f"{_TOP} ffn.k=1"),
        logged=(f"{_TOP} ffn.k=8", "ffn=hash ffn.k=8"),
    ),
    "ffn.scale": Limit("1 is none", same=(f"{_TOP} ffn.scale=1.0",)),
    "ffn.expert_ratio": Limit("a size; null is 1 / (k + shared)"),
    "ffn.shared": Limit("a size; null is none", refused=(f"{_TOP} ffn.shared=0",)),
    "ffn.first_dense": Limit("as many as layers leave no experts", refused=(f"{_TOP} ffn.first_dense=4",)),
    "ffn.groups": Limit(
        "none without group_k or device_loss", refused=(f"{_TOP} ffn.groups=4", f"{_TOP} ffn.groups=1")
    ),
    "ffn.group_k": Limit("all groups limit nothing", (f"{_TOP} ffn.groups=4 ffn.group_k=4", f"{_TOP} ffn.group_k=2")),
    "ffn.group_best": Limit("1 is null; none without groups", refused=(f"{_TOP} ffn.group_best=2",)),
    "ffn.capacity_factor": Limit(
        "n_experts / k drops nothing; with expert_choice n_experts chooses nothing",
        refused=(f"{_CHOICE} ffn.leaks=true ffn.capacity_factor=9.0",),
        logged=(f"{_TOP} ffn.capacity_factor=4.0", f"{_CHOICE} ffn.leaks=true ffn.capacity_factor=8.0"),
    ),
    "ffn.balance_loss": Limit(
        _LOSS, (f"{_TOP} ffn.balance_loss=0.0",), logged=(f"{_TOP} ffn.balance_loss=0.1 ffn.k=8",)
    ),
    "ffn.device_loss": Limit(f"{_LOSS}; needs groups", refused=(f"{_TOP} ffn.device_loss=0.1",)),
    "ffn.communication_loss": Limit(f"{_LOSS}; needs groups", refused=(f"{_TOP} ffn.communication_loss=0.1",)),
    "ffn.router_z_loss": Limit(_LOSS, refused=(f"{_TOP} ffn.router_z_loss=0.0",)),
    "ffn.bias_rate": Limit("null is off", logged=("ffn=loss_free ffn.bias_rate=0.1 ffn.k=8",)),
    # objective
    "objective.prefix_share": Limit(
        "a prefix has 2 tokens or more", ("objective=prefix objective.prefix_share=0.001",)
    ),
    "objective.mask_share": Limit("hides one token at least", logged=("objective=mlm objective.mask_share=0.001",)),
    "objective.random_share": Limit("0 is none", refused=("objective=mlm objective.random_share=0.95",)),
    "objective.kept_share": Limit("0 is none", refused=("objective=mlm objective.kept_share=0.95",)),
    "objective.mean_span": Limit(
        "longer than all that is hidden, it is one span", logged=(f"{_SPANS} objective.mean_span=100.0",)
    ),
    "objective.generator_share": Limit(
        "1 is a generator of the model's size", ("objective=rtd objective.generator_share=0.0",)
    ),
    "objective.discriminator_weight": Limit(_LOSS, refused=("objective=rtd objective.discriminator_weight=0.0",)),
    "objective.special_id": Limit("null adds an id", refused=("objective.special_id=3",)),
    # optim, schedule, trainer
    "optim.lr": Limit("acts at every value", refused=("optim.lr=0.0",)),
    "optim.lr_rule.base": Limit("acts at every value", refused=("optim.lr=0.1 optim.lr_rule.base=0.1",)),
    **{
        f"optim.lr_rule.{size}": Limit(
            "the size at which the rate is base; 0 is none", refused=(f"optim.lr_rule.{size}=0",)
        )
        for size in ("d_model", "tokens", "batch_tokens")
    },
    **{
        f"sweep.ladder.{key}": Limit("acts at every value; what no rung reaches is refused (tests/test_ladder.py)")
        for key in ("params", "n_layers", "ratio", "held_out", "tokens_per_param", "tune_at")
    },
    **{f"optim.lr_rule.{size}_power": Limit("0 leaves the size out") for size in ("width", "tokens", "batch")},
    "optim.beta1": Limit("0 is no momentum", refused=("optim.beta1=1.0",)),
    "optim.beta2": Limit("0 is the last gradient alone", refused=("optim.beta2=1.0",)),
    "optim.eps": Limit("acts the less the smaller it is", refused=("optim.eps=0.0",)),
    "optim.weight_decay": Limit("0 is none", logged=("optim.weight_decay=0.0 optim.decay=independent",)),
    "optim.grad_clip": Limit(
        "acts where the gradient's norm (grad_norm of the history) exceeds it", ("optim.grad_clip=0.0",)
    ),
    "schedule.warmup_steps": Limit(
        "as long as the run there is nothing else; 0 and 1 warm nothing up",
        refused=("schedule.warmup_steps=400", "schedule=constant schedule.warmup_steps=500"),
        logged=("schedule.warmup_steps=1", "schedule.warmup_steps=399"),
    ),
    "schedule.warmup_fraction": Limit(
        "less than a step is none",
        refused=("schedule.warmup_fraction=0.9 trainer.steps=2", "schedule=wsd schedule.warmup_fraction=0.9"),
        logged=("schedule.warmup_fraction=0.001",),
    ),
    "schedule.final_fraction": Limit("1 is no decay", logged=("schedule.final_fraction=1.0",)),
    "schedule.decay_fraction": Limit(
        "0, or less than two steps, is no decay; it begins after the warmup",
        refused=("schedule=wsd schedule.decay_fraction=1.0", "schedule=wsd_branches schedule.decay_fraction=1.0"),
        logged=("schedule=wsd schedule.decay_fraction=0.0",),
    ),
    "schedule.branches": Limit(
        "shares that end at one step are one", ("schedule=wsd_branches schedule.branches=[0.5,0.5001]",)
    ),
    "trainer.steps": Limit("none beside tokens", refused=("trainer.steps=10 trainer.tokens=100000",)),
    "trainer.tokens": Limit("less than a step is not trained", refused=("trainer.tokens=100",)),
    "trainer.tokens_per_param": Limit(
        "none beside steps or tokens; less than a step is not trained",
        refused=(
            "trainer.tokens_per_param=20.0 trainer.steps=10",
            "trainer.tokens_per_param=20.0 trainer.tokens=100000",
            "trainer.tokens_per_param=0.0001",
        ),
    ),
    "trainer.batch_size": Limit("acts at every value", refused=("trainer.batch_size=0",)),
    "trainer.divergence_smoothing": Limit("0 is none", refused=("trainer.divergence_smoothing=1.0",)),
    "trainer.divergence_patience": Limit(
        "more than the steps never comes", logged=("trainer.divergence_patience=401",)
    ),
    # data and tokenizer
    "data.val_fraction": Limit("acts at every value", refused=("data.val_fraction=1.0",)),
    "data.val_bytes": Limit("more than is held out is not reached, which is said where the text is read"),
    "data.train_bytes": Limit("as much as the text has is refused where it is read"),
    "data.max_documents": Limit("more than there are leaves nothing out"),
    "data.chain_seed": Limit(_SEED),
    "data.n_states": Limit("acts at every value", refused=("data=synthetic data.n_states=1",)),
    "data.n_successors": Limit("acts up to n_states", refused=("data=synthetic data.n_states=4 data.n_successors=5",)),
    "data.n_documents": Limit("acts at every value"),
    "data.document_length": Limit("acts at every value"),
    "data.task_seed": Limit(_SEED),
    "data.n_examples": Limit("as many as a run reads limit nothing", logged=("data=mqar data.n_examples=6400",)),
    "data.n_val": Limit("acts at every value"),
    "data.vocab_size": Limit("acts at every value", refused=("data=mqar data.vocab_size=8",)),
    "data.n_pairs": Limit("acts up to a quarter of the context", refused=("data=mqar data.n_pairs=33",)),
    "data.power": Limit("1 is uniform"),
    "data.length_factors": Limit("null is none"),
    "data.max_length": Limit("half the context is null", refused=("data=copy data.max_length=65",)),
    "data.n_copied": Limit("acts while a blank is left", refused=("data=selective_copying data.n_copied=64",)),
    "data.modulus": Limit("acts at every value", refused=("data=modular data.modulus=2 model.context_length=4",)),
    "data.train_fraction": Limit("acts at every value"),
    "data.noise_vocab_size": Limit("none without noise_fraction", refused=("data=recall data.noise_vocab_size=4",)),
    "data.noise_fraction": Limit("none without noise_vocab_size", refused=("data=recall data.noise_fraction=0.2",)),
    "tokenizer.vocab_size": Limit(
        "more than the text has pairs for is not reached, which is said where it is read", ("tokenizer.vocab_size=256",)
    ),
    # how a run is carried out
    "runtime.threads": Limit("of one run"),
    "runtime.workers": Limit("more than there are runs have nothing to do"),
    "runtime.microbatch_size": Limit("the whole batch is null", logged=("runtime.microbatch_size=16",)),
    "runtime.log_every": Limit("more than the steps leaves the last record", logged=("runtime.log_every=401",)),
    "runtime.evaluations": Limit("one a step at most", logged=("runtime.evaluations=401",)),
    "runtime.evaluate_lengths": Limit("null is none", refused=("runtime.evaluate_lengths=[]",)),
    "runtime.evaluate_stride": Limit(
        "as long as the longest window, none slides; none without lengths",
        refused=("runtime.evaluate_stride=8",),
        logged=("runtime.evaluate_stride=256 runtime.evaluate_lengths=[2.0]",),
    ),
    "runtime.checkpoint_seconds": Limit(
        "longer than the run never comes", logged=("runtime.checkpoint_seconds=1000.0",)
    ),
    "runtime.keep_checkpoints": Limit("no more than were written"),
    "runtime.nan_restarts": Limit("acts where a loss is not finite; 0 is none"),
    "runtime.time_limit": Limit("acts on what takes longer; null is none"),
    "runtime.retries": Limit("acts where a run fails; 0 is none"),
    "runtime.gpu_memory": Limit("none on the CPU", logged=("runtime.gpu_memory=4.0 runtime.device=cpu",)),
    "diagnostics.every": Limit(
        "more than the steps leaves the first and the last; none without measures",
        refused=("diagnostics.every=5",),
        logged=("diagnostics=standard diagnostics.every=401",),
    ),
    "diagnostics.sequences": Limit("none without measures", refused=("diagnostics.sequences=5",)),
    # studies and searches
    "sweep.seeds.values": Limit("acts at every value", refused=("sweep.seeds.values=0",)),
    "sweep.looks": Limit("the last pair is no look", refused=("sweep.looks=[4]",)),
    "tune.factors": Limit(
        "one rate is no choice, unless it is extended or crossed", refused=("tune.factors=[1.0] tune.extend=0",)
    ),
    "tune.seeds": Limit("none of the evaluation's", refused=("tune.seeds=[0]",)),
    "tune.extend": Limit("0 is none"),
    "hydra.sweeper.trials": Limit(
        "a grid has no more than its points", logged=("hydra.sweeper.sampler=grid hydra.sweeper.trials=9",)
    ),
    "hydra.sweeper.seed": Limit(_SEED),
    "hydra.sweeper.seeds": Limit("each once", refused=("hydra.sweeper.seeds=[1,1]",)),
    "hydra.sweeper.batch": Limit("all trials together teach the sampler nothing", logged=("hydra.sweeper.batch=20",)),
    "hydra.sweeper.space.step": Limit("none with a logarithm"),
    "hydra.sweeper.halving.rungs": Limit("two or more that rise to 1", refused=("hydra.sweeper.halving.rungs=[1.0]",)),
    "hydra.sweeper.halving.keep": Limit("between none and all", refused=("hydra.sweeper.halving.keep=1.0",)),
}
