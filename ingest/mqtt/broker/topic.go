package broker

import (
	"bytes"
	"errors"
	"strings"
)

// SharePrefix begins the filters of shared subscriptions.
const SharePrefix = "$share/"

// maxLevels bounds how deep the trie of filters gets.
const maxLevels = 128

// CheckTopic says what is wrong with the topic name of a PUBLISH or a will. Whether it is UTF-8 the front knows.
func CheckTopic(topic []byte) error {
	switch {
	case len(topic) == 0:
		return errors.New("topic is empty") // MQTT-4.7.3-1
	case len(topic) > 65535:
		return errors.New("topic is longer than 65535 bytes") // MQTT-4.7.3-3
	case bytes.ContainsAny(topic, "+#"):
		return errors.New("topic holds + or #, which only filters may") // MQTT-3.3.2-2
	case bytes.IndexByte(topic, 0) >= 0:
		return errors.New("topic holds a zero character") // MQTT-4.7.3-2
	}
	return nil
}

// CheckFilter says what is wrong with a topic filter. For a shared one it returns the group and the filter after it.
func CheckFilter(filter string) (group, rest string, err error) {
	rest = filter
	switch {
	case filter == "":
		return "", "", errors.New("topic filter is empty") // MQTT-4.7.3-1
	case len(filter) > 65535:
		return "", "", errors.New("topic filter is longer than 65535 bytes") // MQTT-4.7.3-3
	case strings.IndexByte(filter, 0) >= 0:
		return "", "", errors.New("topic filter holds a zero character") // MQTT-4.7.3-2
	}
	if filter == "$share" {
		return "", "", errors.New("shared subscription without group and filter: write $share/group/filter") // MQTT-4.8.2-1
	}
	if shared, ok := strings.CutPrefix(filter, SharePrefix); ok {
		group, rest, ok = strings.Cut(shared, "/")
		if !ok || group == "" || rest == "" { // MQTT-4.8.2-1, -2
			return "", "", errors.New("shared subscription without group or filter: write $share/group/filter")
		}
		if strings.ContainsAny(group, "+#") { // MQTT-4.8.2-2
			return "", "", errors.New("group of a shared subscription holds + or #")
		}
	}
	if strings.Count(rest, "/") >= maxLevels {
		return "", "", errors.New("topic filter has more than 128 levels")
	}
	for levels, more := rest, true; more; {
		var level string
		level, levels, more = strings.Cut(levels, "/")
		switch {
		case level == "#":
			if more {
				return "", "", errors.New("# is not the last level of the topic filter") // MQTT-4.7.1-1
			}
		case level != "+" && strings.ContainsAny(level, "+#"): // MQTT-4.7.1-1, -2
			return "", "", errors.New("+ or # is not a whole level of the topic filter")
		}
	}
	return group, rest, nil
}
