raise RuntimeError("no luck at the start")
