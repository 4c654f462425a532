"""Benchmarks against other libraries; the protocol stands in docs/benchmarks.md."""
