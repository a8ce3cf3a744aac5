"""True/false class activation guidance in JAX.

The package is flat and its file names are the pipeline, in the order the data flows:
data -> models -> cams -> losses -> strategies -> steps -> train / evaluate / explain.
Nothing is imported here, so that `import tfcam_jax.losses` costs only jax.
"""
