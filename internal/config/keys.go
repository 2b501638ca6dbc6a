package config

import "slices"

// Reload says whether a change of a key needs a restart.
type Reload string

const (
	// Live keys can be changed while the broker runs.
	Live Reload = "live"
	// Restart keys are read once, at the start.
	Restart Reload = "restart"
)

// Key is one setting: its name, what it means, and where it goes.
type Key struct {
	Name    string
	Type    string // such as duration; for people
	Default string
	Doc     string
	Reload  Reload
	// Later says that this version accepts the key and does nothing with it yet.
	Later bool

	parse func(string) error
	show  func() string
	list  bool
}

// Keys is the registry: every key, in the order of the documentation.
func Keys() []Key {
	c := Default()
	return c.keys()
}

// keys binds the registry to the fields of c.
func (c *Config) keys() []Key {
	return slices.Concat(
		c.nodeKeys(),
		listenerKeys("listeners.kafka", &c.Listeners.Kafka, "127.0.0.1:9092", "the Kafka protocol", true),
		listenerKeys("listeners.grpc", &c.Listeners.GRPC, "127.0.0.1:9093", "the native gRPC API", false),
		listenerKeys("listeners.internal", &c.Listeners.Internal, "127.0.0.1:9094", "Raft traffic between brokers", true),
		gossipKeys(&c.Listeners.Gossip),
		listenerKeys("listeners.admin", &c.Listeners.Admin, "127.0.0.1:9644", "health, metrics and pprof over HTTP", false),
		c.clusterKeys(),
		c.topicKeys(),
		c.limitKeys(),
		c.processKeys(),
	)
}

func (c *Config) nodeKeys() []Key {
	return []Key{
		enum(&c.Node.ID, "node.id", "auto", "Who this broker is. The cluster hands out the ids.", "auto"),
		text(&c.Node.Rack, "node.rack", "", "Rack or zone of this broker; replicas are spread over racks."),
		required(text(&c.Node.DataDir, "node.data_dir", "./tidemark-data", "The directory that holds all data of this broker. It belongs to one process.")),
	}
}

func listenerKeys(at string, l *Listener, address, what string, later bool) []Key {
	keys := []Key{
		hostPort(&l.Address, at+".address", address, "Where to listen for "+what+"; port 0 takes a free one."),
		hostPort(&l.Advertised, at+".advertised", "", "The address that others are told; empty: the address that was bound."),
		enum(&l.TLS.Mode, at+".tls.mode", "off", "Transport security: off, server (clients check the server) or mutual (both check).", "off", "server", "mutual"),
		later1(text(&l.TLS.CertFile, at+".tls.cert_file", "", "PEM certificate chain.")),
		later1(text(&l.TLS.KeyFile, at+".tls.key_file", "", "PEM private key of the certificate.")),
		later1(text(&l.TLS.CAFile, at+".tls.ca_file", "", "PEM certificates that sign the other side's certificate.")),
		list(&l.Auth, at+".auth", "", "Accepted ways to authenticate, such as scram-sha-512; empty: none is needed."),
	}
	if later {
		for i := range keys {
			keys[i].Later = true
		}
		return keys
	}
	for i, k := range keys { // of a door that is open, what would not protect is refused
		switch k.Name {
		case at + ".tls.mode":
			keys[i].Doc += " This version has off only."
		case at + ".auth":
			keys[i].Doc += " This version has none."
		}
	}
	return keys
}

func gossipKeys(g *Gossip) []Key {
	return []Key{
		later1(hostPort(&g.Address, "listeners.gossip.address", "127.0.0.1:7946", "Where to listen for the membership protocol (TCP and UDP).")),
		later1(hostPort(&g.Advertised, "listeners.gossip.advertised", "", "The address that others are told; empty: the address that was bound.")),
		later1(secret(&g.EncryptKey, "listeners.gossip.encrypt_key", "Key of the membership protocol, 16, 24 or 32 bytes in base64. Better: encrypt_key_file.")),
		later1(text(&g.EncryptKeyFile, "listeners.gossip.encrypt_key_file", "", "File that holds encrypt_key.")),
	}
}

func (c *Config) clusterKeys() []Key {
	return []Key{
		text(&c.Cluster.Name, "cluster.name", "", "Name of the cluster, for people."),
		number(&c.Cluster.BootstrapExpect, "cluster.bootstrap_expect", "1", "How many brokers found a new cluster together. Used only with an empty data directory. This version runs one broker, and starts with 1 only.", 1, 99),
		later1(list(&c.Cluster.Join, "cluster.join", "", "Gossip addresses of brokers of the cluster; tried for ever. This version runs one broker, and does not start with others than itself here.")),
		number(&c.Cluster.CoordinatorGroups, "cluster.coordinator_groups", "8", "How many coordinators of consumer groups a new cluster gets, for good.", 1, 64),
	}
}

func (c *Config) topicKeys() []Key {
	return []Key{
		boolean(&c.Topics.AutoCreate, "topics.auto_create", "false", "Whether producing to an unknown topic creates it. Accepted as false only: a typing error must not make a topic."),
		number(&c.Topics.Partitions, "topics.partitions", "1", "Partitions of a new topic that does not say how many.", 1, 10_000),
		number(&c.Topics.ReplicationFactor, "topics.replication_factor", "0", "Replicas of a new topic that does not say how many; 0: min(3, brokers).", 0, 9),
	}
}

func (c *Config) limitKeys() []Key {
	return []Key{
		number(&c.Limits.Partitions, "limits.partitions", "4000", "Replicas that this broker hosts at most.", 1, 100_000),
		size(&c.Limits.InFlightBytes, "limits.in_flight_bytes", "64MiB", "Bytes of appends that wait for their answer; producers wait when they are used up.", 1<<20),
		size(&c.Limits.TailBytes, "limits.tail_bytes", "64MiB", "Memory for the newest part of all partitions together.", 1<<20),
		size(&c.Limits.PoolBytes, "limits.pool_bytes", "1GiB", "Disk space of old segments that are kept to be written again, which is faster than new files.", 0),
		number(&c.Limits.Connections, "limits.connections", "4096", "Connections per listener.", 1, 1_000_000),
	}
}

func (c *Config) processKeys() []Key {
	return []Key{
		enum(&c.Log.Level, "log.level", "info", "Least severity that is logged.", "debug", "info", "warn", "error"),
		enum(&c.Log.Format, "log.format", "auto", "Form of the log on stderr; auto: text on a terminal, json otherwise.", "auto", "text", "json"),
		later1(enum(&c.Metrics.PartitionDetail, "metrics.partition_detail", "auto", "Metrics per partition; auto: off above 5,000 partitions.", "auto", "on", "off")),
		boolean(&c.Insecure, "insecure", "false", "Permit listeners beyond loopback without TLS."),
		duration(&c.ShutdownTimeout, "shutdown_timeout", "30s", "How long a graceful stop may take."),
	}
}
