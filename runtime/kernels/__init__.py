"""Every compiled kernel, and the cache that keeps them."""
