// Package format turns text into records and records into text.
//
// The JSON envelope loses nothing: what it writes reads back as the same key,
// value, headers and timestamp, null apart from empty, and bytes that are not
// UTF-8 included. One record of input is bounded in memory.
package format

import (
	"strings"

	"github.com/tidemarkhq/tidemark/proto/record"
)

// MaxRecordBytes bounds one record of input.
const MaxRecordBytes = 64 << 20

// Unset stands where a record has no partition, offset or timestamp yet.
const Unset = -1

// Record is one record on its way in or out.
type Record struct {
	Topic      string // empty: not said
	Partition  int32  // Unset: not said
	Offset     int64
	Epoch      int32
	Timestamp  int64 // milliseconds since 1970; Unset: not said
	Key, Value []byte
	Headers    []record.Header
}

// fresh is a record of which nothing is known.
func fresh() Record { return Record{Partition: Unset, Offset: Unset, Epoch: Unset, Timestamp: Unset} }

// Presets are the names of formats; everything with a % is a format string.
var Presets = []string{"line", "kv", "json", "value-json", "csv", "file"}

// IsLayout tells whether a format is a format string.
func IsLayout(name string) bool { return strings.Contains(name, "%") }
