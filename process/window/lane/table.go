package lane

import (
	"context"

	"github.com/milepost/milepost/process/window"
	"github.com/milepost/milepost/query"
	"github.com/milepost/milepost/state"
)

// Table is the SQL table windows: the results of all windows of a store, by window and time.
type Table struct{ Store state.Store }

var _ query.Table = (*Table)(nil)

// Columns implements query.Table.
func (t *Table) Columns() []query.Column {
	return []query.Column{
		{Name: "name", Type: query.Varchar},
		{Name: "key", Type: query.Varchar},
		{Name: "start", Type: query.Timestamp},
		{Name: "end", Type: query.Timestamp},
		{Name: "rows", Type: query.BigInt},
		{Name: "figures", Type: query.Map}, // numbers, by name
		{Name: "texts", Type: query.List},  // of first and last: name=text
		{Name: "final", Type: query.Boolean},
		{Name: "late", Type: query.Boolean},
		{Name: "revision", Type: query.Integer},
	}
}

// Scan implements query.Table.
func (t *Table) Scan(ctx context.Context, cols []int, emit func([]query.Value) error) error {
	row := make([]query.Value, len(cols))
	var failed error
	err := Each(ctx, t.Store, "", 0, 0, func(s *window.Stored) bool {
		var names, texts []string
		var nums []float64
		for i, v := range s.Values {
			switch v.Kind {
			case window.Number:
				names, nums = append(names, s.Names[i]), append(nums, v.Num)
			case window.Text:
				texts = append(texts, s.Names[i]+"="+v.Text)
			case window.None:
			}
		}
		for i, c := range cols {
			switch c {
			case 0:
				row[i] = query.Text(s.Window)
			case 1:
				row[i] = query.Text(s.Key)
			case 2:
				row[i] = query.Int(s.Start)
			case 3:
				row[i] = query.Int(s.End)
			case 4:
				row[i] = query.Int(int64(s.Rows)) //nolint:gosec // a count
			case 5:
				row[i] = query.Value{}
				if len(names) > 0 {
					row[i] = query.Pairs(names, nums)
				}
			case 6:
				row[i] = query.Texts(texts)
			case 7:
				row[i] = query.Bool(s.Final)
			case 8:
				row[i] = query.Bool(s.Late)
			case 9:
				row[i] = query.Int(int64(s.Revision))
			}
		}
		failed = emit(row)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}
