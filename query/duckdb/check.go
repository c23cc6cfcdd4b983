//go:build cgo

package duckdb

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/milepost/milepost/query"
)

// maxSQL is the longest statement in bytes; it bounds the parser's work.
const maxSQL = 64 << 10

// explainPrefix is what DuckDB's parser cannot turn into a tree for us.
var explainPrefix = regexp.MustCompile(`(?is)^\s*EXPLAIN(\s+ANALYZE)?\s+`)

// check parses a statement with DuckDB's own parser and refuses what is not a plain read of known tables. It returns those.
func (e *Engine) check(ctx context.Context, c *conn, sql string) ([]string, error) {
	if len(sql) > maxSQL {
		return nil, &query.UserError{Msg: fmt.Sprintf("the statement is longer than %d bytes", maxSQL)}
	}
	if strings.ContainsRune(sql, 0) {
		return nil, &query.UserError{Msg: "the statement contains a NUL byte"}
	}
	if p := explainPrefix.FindString(sql); p != "" {
		sql = sql[len(p):]
	}
	var tree string
	err := c.each(ctx, "SELECT json_serialize_sql($1::VARCHAR)", []any{sql}, func(r *result) error {
		if r.size > 0 {
			tree = r.cols[0].text(0)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var parsed struct {
		Error      bool             `json:"error"`
		Type       string           `json:"error_type"`
		Message    string           `json:"error_message"`
		Position   json.Number      `json:"position"`
		Statements []map[string]any `json:"statements"`
	}
	if err := json.Unmarshal([]byte(tree), &parsed); err != nil {
		return nil, fmt.Errorf("parse tree: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "parser":
		return nil, &query.UserError{Msg: at(parsed.Message, parsed.Position.String(), sql)}
	case parsed.Error:
		return nil, &query.UserError{Msg: "only SELECT, EXPLAIN, DESCRIBE and SUMMARIZE are allowed: SQL reads, it changes nothing"}
	case len(parsed.Statements) == 0:
		return nil, &query.UserError{Msg: "there is no statement"}
	case len(parsed.Statements) > 1:
		return nil, &query.UserError{Msg: "one statement at a time, please"}
	}
	k := checker{e: e, aliases: map[string]bool{}}
	k.collect(parsed.Statements[0])
	k.walk(parsed.Statements[0])
	if k.err != nil {
		return nil, k.err
	}
	slices.Sort(k.names)
	return slices.Compact(k.names), nil
}

// at adds the line and the place of a parser's complaint.
func at(msg, position, sql string) string {
	var n int
	if _, err := fmt.Sscan(position, &n); err != nil || n < 0 || n > len(sql) {
		return msg
	}
	line := 1 + strings.Count(sql[:n], "\n")
	return fmt.Sprintf("%s (line %d, column %d)", msg, line, n-strings.LastIndexByte(sql[:n], '\n'))
}

// A checker walks a parse tree. It knows few things to be harmless and refuses to guess.
type checker struct {
	e       *Engine
	aliases map[string]bool // names of common table expressions, wherever they are
	names   []string
	err     error
}

// inFrom marks, in the tree, the call of a table function: node meets it before its children.
const inFrom = "milepost: in FROM"

func (k *checker) refuse(format string, args ...any) {
	if k.err == nil {
		k.err = &query.UserError{Msg: fmt.Sprintf(format, args...)}
	}
}

// collect finds the names of common table expressions. Their scopes are not followed: such a name may be used anywhere, so it
// must be one that means nothing outside of its scope either.
func (k *checker) collect(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			k.collect(x)
		}
	case map[string]any:
		if m, ok := v["cte_map"].(map[string]any); ok {
			list, _ := m["map"].([]any)
			for _, x := range list {
				if entry, ok := x.(map[string]any); ok {
					name, _ := entry["key"].(string)
					k.alias(name)
				}
			}
		}
		// A recursive one stands in its node.
		if name, ok := v["cte_name"].(string); ok && name != "" {
			k.alias(name)
		}
		if name, ok := v["ctename"].(string); ok && name != "" {
			k.alias(name)
		}
		for _, x := range v {
			k.collect(x)
		}
	}
}

func (k *checker) alias(name string) {
	low := strings.ToLower(name)
	if !identifier.MatchString(name) || k.e.denied[low] || systemName(low) {
		k.refuse("WITH %q: choose another name, of letters, digits and _", name)
		return
	}
	k.aliases[low] = true
}

// systemName tells names that DuckDB has or may get for things about itself.
func systemName(low string) bool {
	for _, p := range []string{"duckdb_", "pragma_", "sqlite_", "pg_", "information_schema", "milepost_"} {
		if strings.HasPrefix(low, p) {
			return true
		}
	}
	return false
}

func (k *checker) walk(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			k.walk(x)
		}
	case map[string]any:
		k.node(v)
		for _, x := range v {
			k.walk(x)
		}
	}
}

func (k *checker) node(n map[string]any) {
	text := func(key string) string { s, _ := n[key].(string); return s }
	switch text("type") {
	case "BASE_TABLE":
		k.table(text("catalog_name"), text("schema_name"), text("table_name"))
	case "SHOW_REF":
		if n["query"] == nil || text("table_name") != "" {
			k.refuse("only DESCRIBE and SUMMARIZE of a table or query are allowed; tables are %s", k.e.tableNames())
		}
	case "TABLE_FUNCTION":
		f, _ := n["function"].(map[string]any)
		name, _ := f["function_name"].(string)
		if !harmlessTable(strings.ToLower(name)) {
			k.refuse("%s is not allowed in FROM; tables are %s", name, k.e.tableNames())
		}
		if _, ok := n["subquery"].(map[string]any); ok {
			k.refuse("a table function of a query is not allowed")
		}
		if f != nil {
			f[inFrom] = true
		}
	}
	if name, ok := n["function_name"].(string); ok {
		low := strings.ToLower(name)
		if forbidden(low) {
			k.refuse("function %s is not allowed", name)
		}
		if n[inFrom] == nil {
			args, _ := n["children"].([]any)
			k.grows(low, args)
		}
	}
}

func (k *checker) table(catalog, schema, name string) {
	low := strings.ToLower(name)
	plain := catalog == "" && schema == ""
	switch {
	case plain && (low == readings && k.e.src.Archive != nil || k.e.tables[low] != nil):
		// An alias of the same name only hides it: making the view is harmless.
		k.names = append(k.names, low)
	case plain && k.aliases[low]:
	default:
		k.refuse("there is no table %q; tables are %s", name, k.e.tableNames())
	}
}

func (e *Engine) tableNames() string {
	var names []string
	if e.src.Archive != nil {
		names = append(names, readings)
	}
	for name := range e.tables {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// harmlessTable tells functions that may stand in FROM: they make rows out of their arguments only.
func harmlessTable(name string) bool {
	switch name {
	case "range", "generate_series", "unnest", "repeat", "json_each", "json_tree", "regexp_split_to_table", "generate_subscripts":
		return true
	}
	return false
}

// forbidden tells functions that reach out of the query: files, environment, configuration, other statements, time wasted.
func forbidden(name string) bool {
	for _, p := range []string{
		"read_", "write_", "duckdb_", "pragma_", "pg_", "parquet_", "__internal", "has_", "inet_", "json_execute", "which_",
		"sniff_", "milepost_", "copy_", "arrow_", "enable_", "disable_", "import_", "force_",
	} {
		if strings.HasPrefix(name, p) && name != "pg_typeof" {
			return true
		}
	}
	switch name {
	case "getenv", "current_setting", "set_config", "getvariable", "query", "query_table", "glob", "nextval", "currval",
		"current_query", "current_schemas", "current_database", "current_schema", "current_catalog", "in_search_path", "checkpoint",
		"sleep_ms", "parse_duckdb_log_message", "txid_current", "current_transaction_id", "current_connection_id",
		"json_serialize_sql", "json_deserialize_sql", "json_serialize_plan", "seq_scan", "sql_auto_complete", "scan_arrow_ipc",
		"create_sort_key", "test_all_types", "test_vector_types", "add_parquet_key", "user_agent", "platform", "st_setcrs", "get_block_size":
		return true
	}
	return false
}
