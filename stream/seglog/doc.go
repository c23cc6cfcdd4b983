// Package seglog is Milepost's own log: streams of shards in segment files on one machine, fsynced before the acknowledgement.
package seglog
