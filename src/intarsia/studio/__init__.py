"""The studio: a page on which a pool's modules are composed, tried, unlearned and learned by hand."""
