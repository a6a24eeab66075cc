"""Wrappers for Slurm, Kubernetes and containers: text, which `depthscope submit` fills in."""
