"""tarjax: text-aligned representations (Tar, arXiv 2506.18898) in JAX."""

__version__ = "0.1.0"
