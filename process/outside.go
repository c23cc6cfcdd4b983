package process

// LaneOf tells which of so many lanes takes a key, for those who have to find again what a lane was given.
func LaneOf(key string, lanes int) int { return laneOf(key, lanes) }

// Add adds another's counters.
func (c *Counters) Add(o *Counters) { c.add(o) }
