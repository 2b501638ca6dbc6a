package config

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"

	"github.com/tidemarkhq/tidemark/internal/bug"
	"github.com/tidemarkhq/tidemark/internal/failpoint"
)

const envPrefix = "TIDEMARK_"

// ClientVariables are the variables of client commands, which a broker ignores.
var ClientVariables = []string{
	"TIDEMARK_BROKERS", "TIDEMARK_PROTOCOL", "TIDEMARK_CONTEXT", "TIDEMARK_CONFIG",
	"TIDEMARK_DEV_PID", "TIDEMARK_ADMIN", "TIDEMARK_DATA",
}

// serviceLink matches what Kubernetes puts into every pod for a Service that is
// called tidemark.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT(_\d+_(TCP|UDP)(_.*)?)?$`)

// Sources is where settings come from.
type Sources struct {
	Files []string // in order; later wins
	Env   []string // as os.Environ returns it; nil: none
	Set   []string // key=value, as given to --set
	// Lookup finds a variable for ${NAME}; nil: os.LookupEnv.
	Lookup func(name string) (string, bool)
}

// Loaded is the settings in force and where each one came from.
type Loaded struct {
	Config Config
	// Overridden names the keys that were set in more than one place, for a
	// log line: "listeners.grpc.address: env overrides file".
	Overridden []string
	// Unused names the keys that were set and that this version does nothing with.
	Unused []string

	origins map[string]string
}

// Origin says where the value of a key came from: default, or a place.
func (l *Loaded) Origin(key string) string {
	if o, ok := l.origins[key]; ok {
		return o
	}
	return "default"
}

// Entry is one key and its value in force.
type Entry struct {
	Key
	Value  string // secrets are masked
	Origin string
}

// Entries returns all keys with their values.
func (l *Loaded) Entries() []Entry {
	var entries []Entry
	for _, k := range l.Config.keys() {
		entries = append(entries, Entry{Key: k, Value: k.show(), Origin: l.Origin(k.Name)})
	}
	return entries
}

// layer is what one source says.
type layer struct {
	name   string // file, env, flag
	values map[string]value
}

type value struct {
	text  string
	place string // file:line:column, the variable's name, or --set key
}

// Load reads all sources. The error lists every problem.
func Load(src Sources) (*Loaded, error) {
	if src.Lookup == nil {
		src.Lookup = os.LookupEnv
	}
	var problems problems
	var layers []layer
	for _, name := range src.Files {
		layers = append(layers, readFile(name, &problems))
	}
	layers = append(layers, readEnv(src.Env, &problems), readSet(src.Set, &problems))
	loaded := merge(layers, src.Lookup, &problems)
	if len(problems) == 0 {
		loaded.Config.check(loaded, &problems)
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	return loaded, nil
}

// merge lays the layers over each other, later over earlier, and parses the
// result into a configuration.
func merge(layers []layer, lookup func(string) (string, bool), problems *problems) *Loaded {
	l := &Loaded{Config: Default(), origins: map[string]string{}}
	all := koanf.New(".")
	from := map[string]layer{}
	for _, over := range layers {
		one := koanf.New(".")
		// A map in memory always loads.
		_ = one.Load(confmap.Provider(flat(over.values), "."), nil)
		_ = all.Merge(one)
		for _, key := range sortedKeys(over.values) {
			if under, ok := from[key]; ok && under.values[key].text != over.values[key].text {
				l.Overridden = append(l.Overridden, fmt.Sprintf("%s: %s overrides %s",
					key, describe(over, key), describe(under, key)))
			}
			from[key] = over
		}
	}
	for _, k := range l.Config.keys() {
		if !all.Exists(k.Name) {
			continue
		}
		place := from[k.Name].values[k.Name].place
		l.origins[k.Name] = from[k.Name].name + " " + place
		text, err := expand(all.String(k.Name), lookup)
		if err == nil {
			err = k.parse(text)
		}
		if err != nil {
			problems.add(k.Name, err.Error(), place)
			continue
		}
		if k.Later && text != k.Default {
			l.Unused = append(l.Unused, k.Name)
		}
	}
	return l
}

func describe(l layer, key string) string {
	if l.name == "file" {
		return l.values[key].place
	}
	return l.name
}

func flat(values map[string]value) map[string]any {
	m := make(map[string]any, len(values))
	for k, v := range values {
		m[k] = v.text
	}
	return m
}

func sortedKeys(m map[string]value) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// readEnv reads the variables that begin with TIDEMARK_.
func readEnv(environ []string, problems *problems) layer {
	l := layer{name: "env", values: map[string]value{}}
	provider := env.Provider("", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, text string) (string, any) {
			if slices.Contains(ClientVariables, name) || isServiceLink(name) || name == failpoint.Variable || name == bug.Variable {
				return "", nil
			}
			key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "__", "."))
			if !known(key) {
				problems.add(name, "is no setting"+suggest(key, envName), "environment")
				return "", nil
			}
			l.values[key] = value{text, name}
			return "", nil
		},
	})
	_, _ = provider.Read() // it works through the transform function and cannot fail
	return l
}

// envName is the variable that sets a key.
func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "__"))
}

func isServiceLink(name string) bool {
	return !strings.Contains(name, "__") && serviceLink.MatchString(name)
}

// readSet reads the arguments of --set.
func readSet(args []string, problems *problems) layer {
	l := layer{name: "flag", values: map[string]value{}}
	for _, arg := range args {
		key, text, ok := strings.Cut(arg, "=")
		switch {
		case !ok:
			problems.add(arg, "want key=value", "--set")
		case !known(key):
			problems.add(key, "unknown key"+suggest(key, nil), "--set")
		default:
			l.values[key] = value{text, "--set " + key}
		}
	}
	return l
}
