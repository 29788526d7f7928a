"""For tests, ours and yours: strict token servers, a clock moved by hand, the store conformance suite."""
