"""depthscope.storage"""
