package record

import (
	"fmt"
	"strings"

	"github.com/tidemarkhq/tidemark/proto/errs"
)

// Codec is how the records of a batch are compressed.
type Codec int8

// The codecs, as they stand in the attributes of a batch.
const (
	CodecNone Codec = iota
	CodecGzip
	CodecSnappy
	CodecLZ4
	CodecZstd
)

var codecNames = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// ParseCodec finds a codec by Kafka's name of it.
func ParseCodec(name string) (Codec, error) {
	for i, n := range codecNames {
		if strings.EqualFold(name, n) {
			return Codec(i), nil
		}
	}
	return 0, errs.Errorf(errs.UnsupportedCompressionType, "no codec is called %q; there are %s", name, strings.Join(codecNames[:], ", "))
}

// String returns Kafka's name of the codec.
func (c Codec) String() string {
	if c >= 0 && int(c) < len(codecNames) {
		return codecNames[c]
	}
	return fmt.Sprintf("codec(%d)", int8(c))
}
