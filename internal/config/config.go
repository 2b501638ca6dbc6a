// Package config reads a node's settings.
//
// A setting has one name, its path, in the file, in the environment
// (TIDEMARK_ and "__" between the levels) and in --set. Flags go over the
// environment, the environment over files, later files over earlier ones, and
// files over defaults. Nothing is guessed: an unknown name or a value that
// does not parse is an error that names the place and the nearest name, and
// all such errors are reported at once. What a key is called, means and
// defaults to stands once, in the registry; docs/config.md is printed from it.
package config

import "time"

// Config is everything that a node can be told.
type Config struct {
	Node            Node
	Listeners       Listeners
	Cluster         Cluster
	Topics          Topics
	Limits          Limits
	Log             Log
	Metrics         Metrics
	Insecure        bool
	ShutdownTimeout time.Duration
}

// Node says who this broker is.
type Node struct {
	ID      string
	Rack    string
	DataDir string
}

// Listeners says where the doors are.
type Listeners struct {
	Kafka    Listener
	GRPC     Listener
	Internal Listener
	Gossip   Gossip
	Admin    Listener
}

// Listener is one listener.
type Listener struct {
	Address    string
	Advertised string
	TLS        TLS
	Auth       []string
}

// TLS says how a listener is protected.
type TLS struct {
	Mode     string
	CertFile string
	KeyFile  string
	CAFile   string
}

// Gossip is the listener of the membership protocol.
type Gossip struct {
	Address        string
	Advertised     string
	EncryptKey     Secret
	EncryptKeyFile string
}

// Cluster says how the broker finds its cluster.
type Cluster struct {
	Name              string
	BootstrapExpect   int
	Join              []string
	CoordinatorGroups int
}

// Topics says what new topics get unless they say otherwise.
type Topics struct {
	AutoCreate        bool
	Partitions        int32
	ReplicationFactor int16
}

// Limits bounds what the broker takes on.
type Limits struct {
	Partitions    int32
	InFlightBytes int64
	TailBytes     int64
	PoolBytes     int64
	Connections   int
}

// Log says what the process logs, and how.
type Log struct {
	Level  string
	Format string
}

// Metrics says what is measured.
type Metrics struct {
	PartitionDetail string
}

// Default returns the settings of a node that was told nothing.
func Default() Config {
	var c Config
	for _, k := range c.keys() {
		if err := k.parse(k.Default); err != nil {
			panic("config: default of " + k.Name + ": " + err.Error())
		}
	}
	return c
}
