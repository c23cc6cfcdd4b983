package telemetry

import "math"

// PayloadHash is a hash of what a reading says: its position, status and signals, whatever their order, but neither vehicle
// nor time nor flags. Two readings of one vehicle and time with equal hashes are the same reading sent twice.
//
// It is stored, so it never changes (P6): the golden values in the tests hold for ever.
func PayloadHash(cat *Catalog, r *Reading) uint64 {
	defs := cat.cur.Load().defs
	const position, status, total = 0x9ddfea08eb382d69, 0xc3a5c85c97cb3127, 0xff51afd7ed558ccd
	// A sum does not depend on the order of its terms; mix makes every term look random.
	var h uint64
	for i := range r.Signals {
		s := &r.Signals[i]
		h += mix(defs[s.ID].Hash, math.Float64bits(s.Value))
	}
	if r.Flags&FlagNoPosition == 0 {
		h += mix(mix(position, math.Float64bits(r.Lat)), math.Float64bits(r.Lon))
	}
	if r.Status != "" {
		h += mix(status, HashName(r.Status))
	}
	return mix(h, total+uint64(len(r.Signals)))
}

// mix is two rounds of multiply and shift, each a bijection of either argument while the other stands still.
func mix(a, b uint64) uint64 {
	h := a*0x9e3779b97f4a7c15 ^ b
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return h ^ h>>32
}
