"""depthscope.pipeline"""
