package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
)

// table is rows for people and for machines. A column whose name begins with
// "+" is shown with -f wide only, and always in the formats for machines.
type table struct {
	columns []string
	rows    [][]any
}

func (t *table) add(cells ...any) { t.rows = append(t.rows, cells) }

// document is one thing with fields and tables.
type document struct {
	fields []field
	tables []section
}

type field struct {
	name  string
	value any
}

type section struct {
	name string
	table
}

var adminFormats = []string{"table", "wide", "json", "jsonl", "yaml", "csv", "name"}

func (a *app) adminFormat() (string, error) {
	if a.format == "" {
		return "table", nil
	}
	if !slices.Contains(adminFormats, a.format) {
		return "", fail.Usagef("--format %s: want %s", a.format, strings.Join(adminFormats, ", "))
	}
	return a.format, nil
}

// tables makes the commands below c refuse other formats before they do anything.
func (a *app) tables(c *cobra.Command) *cobra.Command {
	c.PersistentPreRunE = func(*cobra.Command, []string) error {
		if err := a.checkGlobals(); err != nil {
			return err
		}
		_, err := a.adminFormat()
		return err
	}
	return c
}

func (a *app) printTable(t table) error {
	format, err := a.adminFormat()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	switch format {
	case "table", "wide":
		t.text(&b, format == "wide")
	case "json":
		writeJSON(&b, t.objects())
	case "jsonl":
		for _, o := range t.objects() {
			writeJSONLine(&b, o)
		}
	case "yaml":
		writeYAML(&b, t.objects(), "")
	case "csv":
		err = t.csv(&b)
	case "name":
		for _, row := range t.rows {
			fmt.Fprintln(&b, row[0])
		}
	}
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b.Bytes())
	return err
}

// text writes columns that line up.
func (t table) text(w io.Writer, wide bool) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells func(i int) string) {
		first := true
		for i, name := range t.columns {
			if strings.HasPrefix(name, "+") && !wide {
				continue
			}
			if !first {
				fmt.Fprint(tw, "\t")
			}
			first = false
			fmt.Fprint(tw, cells(i))
		}
		fmt.Fprintln(tw)
	}
	line(func(i int) string { return strings.ToUpper(strings.TrimPrefix(t.columns[i], "+")) })
	for _, row := range t.rows {
		line(func(i int) string { return cell(row[i]) })
	}
	_ = tw.Flush() // to memory
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case []int32:
		return strings.Trim(strings.ReplaceAll(fmt.Sprint(v), " ", ","), "[]")
	case string:
		if v == "" {
			return "-"
		}
		return v
	default:
		return fmt.Sprint(v)
	}
}

func (t table) csv(w io.Writer) error {
	cw := csv.NewWriter(w)
	_ = cw.Write(t.keys()) // errors come with Flush
	for _, row := range t.rows {
		cells := make([]string, len(row))
		for i, v := range row {
			if v != nil && v != "" {
				cells[i] = cell(v)
			}
		}
		_ = cw.Write(cells)
	}
	cw.Flush()
	return cw.Error()
}

func (t table) keys() []string {
	keys := make([]string, len(t.columns))
	for i, c := range t.columns {
		keys[i] = key(c)
	}
	return keys
}

func key(column string) string {
	return strings.NewReplacer("+", "", " ", "_", "-", "_").Replace(strings.ToLower(column))
}

// object is a JSON object that keeps its order.
type object []field

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (t table) objects() []object {
	keys := t.keys()
	all := make([]object, 0, len(t.rows))
	for _, row := range t.rows {
		var o object
		for i, v := range row {
			o = append(o, field{keys[i], v})
		}
		all = append(all, o)
	}
	return all
}

func writeJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // plain values to memory
}

func writeJSONLine(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// writeYAML writes objects as YAML; scalars are JSON, which YAML reads.
func writeYAML(w io.Writer, all []object, indent string) {
	if len(all) == 0 {
		fmt.Fprintln(w, indent+"[]")
	}
	for _, o := range all {
		lead := "- "
		for _, f := range o {
			b, _ := json.Marshal(f.value)
			fmt.Fprintf(w, "%s%s%s: %s\n", indent, lead, f.name, b)
			lead = "  "
		}
	}
}

func (d document) object() object {
	var o object
	for _, f := range d.fields {
		o = append(o, field{key(f.name), f.value})
	}
	for _, s := range d.tables {
		o = append(o, field{key(s.name), s.objects()})
	}
	return o
}

// printDocuments prints things one after the other; JSON makes a list of several.
func (a *app) printDocuments(all []document) error {
	format, err := a.adminFormat()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	switch format {
	case "json":
		if len(all) == 1 {
			writeJSON(&b, all[0].object())
			break
		}
		list := make([]object, len(all))
		for i, d := range all {
			list[i] = d.object()
		}
		writeJSON(&b, list)
	case "jsonl":
		for _, d := range all {
			writeJSONLine(&b, d.object())
		}
	case "yaml":
		for _, d := range all {
			d.yaml(&b)
		}
	case "name":
		for _, d := range all {
			fmt.Fprintln(&b, d.fields[0].value)
		}
	case "csv":
		for _, d := range all {
			if len(d.tables) > 0 {
				err = d.tables[0].csv(&b)
			}
		}
	default:
		for i, d := range all {
			if i > 0 {
				fmt.Fprintln(&b)
			}
			d.text(&b, format == "wide")
		}
	}
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b.Bytes())
	return err
}

func (d document) yaml(w io.Writer) {
	lead := "- "
	for _, f := range d.fields {
		b, _ := json.Marshal(f.value)
		fmt.Fprintf(w, "%s%s: %s\n", lead, key(f.name), b)
		lead = "  "
	}
	for _, s := range d.tables {
		fmt.Fprintf(w, "  %s:\n", key(s.name))
		writeYAML(w, s.objects(), "    ")
	}
}

func (d document) text(w io.Writer, wide bool) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, f := range d.fields {
		fmt.Fprintf(tw, "%s\t%s\n", strings.ToUpper(f.name), cell(f.value))
	}
	_ = tw.Flush()
	for _, s := range d.tables {
		if len(s.rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", s.name)
		s.text(w, wide)
	}
}
