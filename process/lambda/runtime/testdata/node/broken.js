throw new Error("no luck at the start")
