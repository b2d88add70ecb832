"""One file a claim: the paper's result as a ratio or an ordering at our scale, with protocol and threshold."""
