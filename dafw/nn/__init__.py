"""Building blocks: gradient reversal, critics, normalisation over two domains, networks and their weights."""
