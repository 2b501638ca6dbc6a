package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds a settings file, which is written by hand.
const maxFileBytes = 1 << 20

// readFile reads a YAML file into paths and values that know their place.
func readFile(name string, problems *problems) layer {
	l := layer{name: "file", values: map[string]value{}}
	b, err := readBounded(name)
	if err != nil {
		problems.add(name, err.Error(), "")
		return l
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		problems.add(name, "is not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "), "")
		return l
	}
	if len(doc.Content) > 0 {
		r := fileReader{name: name, layer: l, problems: problems, keys: keyTypes()}
		r.walk("", doc.Content[0])
	}
	return l
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(b) > maxFileBytes {
		err = fmt.Errorf("is larger than %d bytes", maxFileBytes)
	}
	return b, err
}

type fileReader struct {
	name     string
	layer    layer
	problems *problems
	keys     map[string]Key
}

func (r *fileReader) place(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d:%d", r.name, n.Line, n.Column)
}

// walk visits a mapping under path, or the value of path.
func (r *fileReader) walk(path string, n *yaml.Node) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.MappingNode {
		r.mapping(path, n)
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "node:" with nothing below it says nothing
	}
	if path == "" {
		r.problems.add(r.name, "want keys and values", r.place(n))
		return
	}
	k, ok := r.keys[path]
	if !ok {
		r.problems.add(path, "is a group of keys, not a value", r.place(n))
		return
	}
	r.value(k, n)
}

func (r *fileReader) mapping(path string, n *yaml.Node) {
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		switch {
		case seen[at]:
			r.problems.add(at, "is given twice", r.place(key))
		case !known(at) && !isGroup(at):
			r.problems.add(at, "unknown key"+suggest(at, nil), r.place(key))
		case known(at) && val.Kind == yaml.MappingNode:
			r.problems.add(at, "want a value, got a group of keys", r.place(val))
		default:
			r.walk(at, val)
		}
		seen[at] = true
	}
}

func (r *fileReader) value(k Key, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		r.layer.values[k.Name] = value{n.Value, r.place(n)}
		return
	}
	if !k.list {
		r.problems.add(k.Name, "want one value, got a list", r.place(n))
		return
	}
	var items []string
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || strings.Contains(item.Value, ",") {
			r.problems.add(k.Name, "want a list of plain values", r.place(item))
			return
		}
		items = append(items, item.Value)
	}
	r.layer.values[k.Name] = value{strings.Join(items, ","), r.place(n)}
}
