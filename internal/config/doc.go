package config

import (
	"fmt"
	"io"
	"strings"
)

// WriteDoc writes the reference of all keys as Markdown: docs/config.md.
func WriteDoc(w io.Writer) error {
	var b strings.Builder
	b.WriteString(docHead)
	group := ""
	for _, k := range Keys() {
		if g := groupOf(k.Name); g != group {
			group = g
			fmt.Fprintf(&b, "\n## %s\n\n| key | type | default | change needs | meaning |\n|---|---|---|---|---|\n", g)
		}
		doc := k.Doc
		if k.Later {
			doc += " *Accepted; without effect in this version.*"
		}
		def := "`" + k.Default + "`"
		if k.Default == "" {
			def = ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", k.Name, strings.ReplaceAll(k.Type, "|", `\|`), def, need(k.Reload), doc)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const docHead = `# Settings of a broker

Printed by ` + "`tidemark config doc`" + `; a test keeps this page equal to the code.

A setting has one name everywhere: in the file (` + "`serve -c FILE`" + `, YAML), in the environment
(` + "`TIDEMARK_LISTENERS__GRPC__ADDRESS`" + `: "__" between the levels) and on the command line
(` + "`--set listeners.grpc.address=127.0.0.1:9093`" + `, repeatable; lists are comma-separated). Flags go over the environment,
the environment over files, later files over earlier ones, files over defaults. An unknown name is an error.
Values: durations ` + "`250ms`, `7d`; sizes `64MiB`, `1GB`; `${NAME}` is a variable, `${file:/run/secrets/x}` a file's content, `$$` a dollar sign" + `.
`

func need(r Reload) string {
	if r == Restart {
		return "a restart"
	}
	return "nothing"
}

func groupOf(name string) string {
	parts := strings.Split(name, ".")
	if len(parts) == 1 {
		return "process"
	}
	if parts[0] == "listeners" {
		return parts[0] + "." + parts[1]
	}
	return parts[0]
}

// WriteInit writes a file to begin with: the keys that people change, commented.
func WriteInit(w io.Writer) error {
	_, err := io.WriteString(w, initFile)
	return err
}

const initFile = `# tidemark.yaml: settings of one broker. What is commented out shows the default.
# All keys: tidemark config doc. Check this file: tidemark config validate tidemark.yaml

node:
  # The directory that holds all data of this broker. It belongs to one process.
  data_dir: ./tidemark-data

listeners:
  # The native API: what tidemark produce, tidemark consume and the Go packages dial.
  grpc:
    address: 127.0.0.1:9093
    # advertised: broker-1.example.net:9093

  # Health (/livez, /readyz, /healthz), /metrics and pprof.
  admin:
    address: 127.0.0.1:9644

# topics:
#   partitions: 1            # of a new topic that does not say how many

# limits:
#   in_flight_bytes: 64MiB   # appends that wait for their answer
#   tail_bytes: 64MiB        # memory for the newest part of all partitions

log:
  level: info                # debug, info, warn, error
  format: auto               # auto: text on a terminal, json otherwise

# shutdown_timeout: 30s
`
