"""depthscope.analysis"""
