package telemetry

import (
	"strconv"
	"time"
)

// Event times outside [MinEventTime, arrival + MaxAhead] are refused: a receiver that lost its week count or a clock that
// runs ahead would otherwise spoil the vehicle's order for good (DOMAIN 2.0).
const (
	MinEventTime = 1_262_304_000_000 // 2010-01-01T00:00:00Z, Unix ms
	MaxAhead     = 5 * 60 * 1000     // ms
)

// parseTime reads an RFC 3339 time with its offset as Unix ms; digits beyond the millisecond are cut. It also takes the lower
// case and blank separators that RFC 3339 allows. A leap second (:60) is refused.
func parseTime(s string) (int64, bool) {
	if len(s) < 20 || s[4] != '-' || s[7] != '-' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	if c := s[10]; c != 'T' && c != 't' && c != ' ' {
		return 0, false
	}
	century, year := two(s, 0), two(s, 2)
	month, day := two(s, 5), two(s, 8)
	hour, minute, second := two(s, 11), two(s, 14), two(s, 17)
	if century > 99 || year > 99 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	year += 100 * century
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return 0, false
	}
	ms := ((int64(dayNumber(year, month, day))*24+int64(hour))*60+int64(minute))*60_000 + int64(second)*1000

	i := 19
	if s[i] == '.' {
		i++
		unit := int64(100)
		for i < len(s) && s[i]-'0' <= 9 {
			ms += int64(s[i]-'0') * unit
			unit /= 10
			i++
		}
		if i == 20 || i == len(s) {
			return 0, false
		}
	}
	switch rest := len(s) - i; {
	case rest == 1 && s[i]|0x20 == 'z':
		return ms, true
	case rest == 6 && (s[i] == '+' || s[i] == '-') && s[i+3] == ':':
		h, m := two(s, i+1), two(s, i+4)
		if h > 23 || m > 59 {
			return 0, false
		}
		offset := int64(h*60+m) * 60_000
		if s[i] == '-' {
			offset = -offset
		}
		return ms - offset, true
	}
	return 0, false
}

// two reads two digits at i; more than 99 if they are not digits.
func two(s string, i int) int {
	a, b := s[i]-'0', s[i+1]-'0'
	if a > 9 || b > 9 {
		return 1000
	}
	return int(a)*10 + int(b)
}

func leap(year int) bool { return year%4 == 0 && (year%100 != 0 || year%400 == 0) }

func daysIn(year, month int) int {
	switch month {
	case 2:
		if leap(year) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// dayNumber counts days since 1970-01-01 in the Gregorian calendar, from the year 1 on.
func dayNumber(year, month, day int) int {
	before := [...]int{0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334}
	y := year - 1
	n := 365*y + y/4 - y/100 + y/400 + before[month-1] + day - 1
	if month > 2 && leap(year) {
		n++
	}
	return n - 719_162 // days from 0001-01-01 to 1970-01-01
}

// checkTime tells what is wrong with an event time, "" if nothing is. hint names how the time was written.
func checkTime(ms, arrival int64, hint string) string {
	switch {
	case ms > arrival+MaxAhead:
		return "the clock is ahead by " + ahead(ms-arrival) + " (" + format(ms) + ", arrived " + format(arrival) +
			"): set the device's clock" + hint
	case ms < MinEventTime:
		return "time " + format(ms) + " is before 2010: the device has lost its date" + hint
	}
	return ""
}

func ahead(ms int64) string {
	const day = 24 * 60 * 60 * 1000
	if ms >= 100*day {
		return strconv.FormatInt(ms/day, 10) + " days"
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}

func format(ms int64) string {
	if ms > 253_402_300_799_999 || ms < -62_167_219_200_000 {
		return strconv.FormatInt(ms, 10) + " ms"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}
