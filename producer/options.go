package producer

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/tidemarkhq/tidemark/internal/client"
	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
	tidemarkv1 "github.com/tidemarkhq/tidemark/proto/tidemark/v1"
)

// Acks is the durability after which a record counts as delivered.
type Acks int32

const (
	// AcksAll waits until the record is committed and durable on every in-sync replica.
	AcksAll = Acks(tidemarkv1.Acks_ACKS_ALL)
	// AcksNone does not wait. Records may be lost without anybody being told.
	AcksNone = Acks(tidemarkv1.Acks_ACKS_NONE)
	// AcksLeader waits for the leader's disk. A failover may lose the record.
	AcksLeader = Acks(tidemarkv1.Acks_ACKS_LEADER)
	// AcksQuorum waits until the record is committed: durable on a majority of the replicas.
	AcksQuorum = Acks(tidemarkv1.Acks_ACKS_QUORUM)
)

var acksNames = map[Acks]string{AcksAll: "all", AcksNone: "0", AcksLeader: "1", AcksQuorum: "quorum"}

// String is Kafka's spelling: all, 0, 1; and quorum.
func (a Acks) String() string { return acksNames[a] }

// ParseAcks reads all (or -1), 0 (or none), 1 (or leader), quorum.
func ParseAcks(s string) (Acks, error) {
	switch s {
	case "all", "-1":
		return AcksAll, nil
	case "0", "none":
		return AcksNone, nil
	case "1", "leader":
		return AcksLeader, nil
	case "quorum":
		return AcksQuorum, nil
	}
	return 0, errs.Errorf(errs.InvalidRequiredAcks, "acks %q: use all, quorum, 1 or 0", s)
}

// FullBuffer says what Produce does when the buffer is full.
type FullBuffer int

const (
	// BlockWhenFull waits for space until the context of Produce ends.
	BlockWhenFull FullBuffer = iota
	// RefuseWhenFull fails the record at once with ErrBufferFull.
	RefuseWhenFull
)

// Option configures a Producer.
type Option func(*config)

type config struct {
	client          client.Config
	acks            Acks
	idempotent      bool
	codec           record.Codec
	level           int
	batchBytes      int
	linger          time.Duration
	maxInFlight     int // 0: chosen by idempotence
	bufferBytes     int
	fullBuffer      FullBuffer
	deliveryTimeout time.Duration
	partitioner     Partitioner
}

func defaults() config {
	return config{
		client:          client.DefaultConfig(),
		acks:            AcksAll,
		idempotent:      true,
		batchBytes:      256 << 10,
		linger:          5 * time.Millisecond,
		bufferBytes:     32 << 20,
		deliveryTimeout: 2 * time.Minute,
	}
}

// WithClientID names this client in the broker's logs. Default "tidemark-go".
func WithClientID(id string) Option { return func(c *config) { c.client.ClientID = id } }

// WithLogger sets where the producer reports reconnects and resets. Default: nowhere.
func WithLogger(logger *slog.Logger) Option { return func(c *config) { c.client.Logger = logger } }

// WithTLS turns on TLS. Default: plain text.
func WithTLS(t *tls.Config) Option { return func(c *config) { c.client.TLS = t } }

// WithAcks sets the durability to wait for. Default AcksAll. AcksNone and
// AcksLeader also turn idempotence off: what may be lost cannot be numbered.
func WithAcks(a Acks) Option { return func(c *config) { c.acks = a } }

// WithoutIdempotence turns off the numbering of batches. Such a producer never
// retries a batch whose outcome is unknown, because that could append it twice;
// the error says that the outcome is unknown (errs.OutcomeUnknown).
func WithoutIdempotence() Option { return func(c *config) { c.idempotent = false } }

// WithCodec compresses batches. Default none.
func WithCodec(codec record.Codec) Option { return func(c *config) { c.codec = codec } }

// WithCompressionLevel sets the codec's level. Default 0: the codec's own default.
func WithCompressionLevel(level int) Option { return func(c *config) { c.level = level } }

// WithBatchBytes closes a batch before its records (before compression) grow
// beyond n bytes; one larger record is sent alone. Default 256 KiB.
func WithBatchBytes(n int) Option { return func(c *config) { c.batchBytes = n } }

// WithLinger is how long a batch waits for more records while earlier batches
// of its partition are unanswered; with none unanswered it goes at once.
// Default 5 ms.
func WithLinger(d time.Duration) Option { return func(c *config) { c.linger = d } }

// WithMaxInFlight is how many batches of one partition may be unanswered.
// Default and maximum for idempotent producers 5; for others the default is 1,
// and more may change the order of records when a batch is retried.
func WithMaxInFlight(n int) Option { return func(c *config) { c.maxInFlight = n } }

// WithBufferBytes bounds the memory of records that have no result yet.
// Default 32 MiB.
func WithBufferBytes(n int) Option { return func(c *config) { c.bufferBytes = n } }

// WithFullBuffer says what happens when that bound is reached. Default BlockWhenFull.
func WithFullBuffer(f FullBuffer) Option { return func(c *config) { c.fullBuffer = f } }

// WithDeliveryTimeout is the time from Produce to the result, retries included,
// after which a record fails. Default 2 minutes.
func WithDeliveryTimeout(d time.Duration) Option { return func(c *config) { c.deliveryTimeout = d } }

// WithRequestTimeout is how long one attempt may stay without an answer before
// the connection counts as lost. Default 30 s.
func WithRequestTimeout(d time.Duration) Option {
	return func(c *config) { c.client.RequestTimeout = d }
}

// WithPartitioner chooses partitions. Default: DefaultPartitioner.
func WithPartitioner(p Partitioner) Option { return func(c *config) { c.partitioner = p } }

// WithRetryBackoff sets the pause before a retry: it doubles from min to max,
// with jitter. Default 20 ms to 1 s.
func WithRetryBackoff(min, max time.Duration) Option {
	return func(c *config) { c.client.Backoff = client.Backoff{Min: min, Max: max} }
}

func (c *config) validate() error {
	if c.acks == AcksNone || c.acks == AcksLeader {
		c.idempotent = false
	}
	if c.maxInFlight == 0 {
		c.maxInFlight = 1
		if c.idempotent {
			c.maxInFlight = maxIdempotentInFlight
		}
	}
	switch {
	case c.idempotent && c.maxInFlight > maxIdempotentInFlight:
		return errs.Errorf(errs.InvalidConfig, "max in flight is %d; an idempotent producer may have %d batches of a partition unanswered", c.maxInFlight, maxIdempotentInFlight)
	case c.maxInFlight < 0, c.batchBytes <= 0, c.bufferBytes <= 0, c.linger < 0, c.deliveryTimeout <= 0:
		return errs.Errorf(errs.InvalidConfig, "producer: max in flight, batch bytes, buffer bytes and delivery timeout must be above zero, and linger not below")
	case c.batchBytes > maxBatchBytes:
		return errs.Errorf(errs.InvalidConfig, "batch bytes is %d; at most %d", c.batchBytes, maxBatchBytes)
	case acksNames[c.acks] == "":
		return errs.Errorf(errs.InvalidRequiredAcks, "acks %d is unknown; use one of the constants", c.acks)
	case c.codec < record.CodecNone || c.codec > record.CodecZstd:
		return errs.Errorf(errs.UnsupportedCompressionType, "codec %v is unknown", c.codec)
	}
	return nil
}

const (
	// maxIdempotentInFlight is how many batches the broker remembers of a
	// producer: with more in flight a duplicate could not be told from a gap.
	maxIdempotentInFlight = 5
	maxBatchBytes         = 64 << 20
)
