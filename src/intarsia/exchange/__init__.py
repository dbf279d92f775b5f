"""In and out: what other libraries load of a pool, and what a pool takes from them."""
