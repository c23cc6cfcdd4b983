package wire

import (
	"maps"
	"reflect"
	"slices"
	"time"
)

// Marshal appends v, a struct or a pointer to one, by reflection: for the control plane, whose answers are few and small. Nil
// pointers, slices and maps, zero times and empty strings are left out; the tag w:"keep" keeps a string that is empty. A nil v is
// an empty body.
func (e Encoding) Marshal(b []byte, v any) []byte {
	if v == nil {
		return b
	}
	return e.marshal(b, reflect.ValueOf(v))
}

func (e Encoding) marshal(b []byte, v reflect.Value) []byte {
	switch x := v.Interface().(type) {
	case time.Time:
		return e.AppendTime(b, x)
	case []byte:
		return e.AppendBlob(b, x)
	}
	switch v.Kind() {
	case reflect.Pointer:
		return e.marshal(b, v.Elem())
	case reflect.String:
		return e.AppendString(b, v.String())
	case reflect.Int, reflect.Int64:
		return e.AppendInt(b, v.Int())
	case reflect.Bool:
		return e.AppendBool(b, v.Bool())
	case reflect.Slice:
		b = e.OpenList(b)
		for i := range v.Len() {
			b = e.marshal(e.Separate(b), v.Index(i))
		}
		return e.CloseList(b)
	case reflect.Map:
		b = e.OpenMap(b)
		m, _ := v.Interface().(map[string]string)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			b = e.AppendString(e.AppendKey(b, k), m[k])
		}
		return e.CloseMap(b)
	case reflect.Struct:
		return e.CloseMap(e.members(e.OpenMap(b), v))
	default:
		panic("wire: bug: no way to write " + v.Type().String())
	}
}

func (e Encoding) members(b []byte, v reflect.Value) []byte {
	t := v.Type()
	for i := range t.NumField() {
		f := v.Field(i)
		sf := t.Field(i)
		if sf.Anonymous {
			b = e.members(b, f)
			continue
		}
		if absent(f) && (f.Kind() != reflect.String || sf.Tag.Get("w") != "keep") {
			continue
		}
		b = e.marshal(e.AppendKey(b, sf.Name), f)
	}
	return b
}

func absent(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return v.IsNil()
	case reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		t, ok := v.Interface().(time.Time)
		return ok && t.IsZero()
	default:
		return false
	}
}
