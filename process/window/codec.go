package window

import (
	"errors"

	"github.com/milepost/milepost/internal/binenc"
)

// ErrState says that stored window state makes no sense.
var ErrState = errors.New("stored window state is damaged: give the window another name, or rebuild it by reading the log again")

// A reader reads what the encoders of this package wrote.
type reader struct{ binenc.Reader }

func newReader(b []byte) reader { return reader{binenc.Reader{B: b, Damaged: ErrState}} }
