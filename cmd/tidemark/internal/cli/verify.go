package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemarkhq/tidemark/broker/inspect"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/fail"
	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/internal/clock"
	"github.com/tidemarkhq/tidemark/internal/fsx"
)

func (a *app) verifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "verify DIR", Short: "Check every checksum and index of a data directory; exit code 8 on damage",
		Long: `Check every checksum, chain and index of a broker's data directory, or of one partition in it. Nothing is changed and
no lock is taken, so it works beside a running broker.`,
		Args: exactly("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			begun := clock.Monotonic()
			s, err := inspect.Verify(fsx.OS(), args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return fail.With(fail.NotFound, "name the directory in node.data_dir, or one partition below its topics/", fmt.Errorf("verify: %w", err))
			}
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			if err := a.printSummary(s); err != nil {
				return err
			}
			if len(s.Damage) > 0 {
				return fail.With(fail.Found, damageHint(s), fmt.Errorf("verify %s: %s", args[0], counted(len(s.Damage), "damage")))
			}
			a.say("%s, in %s", checked(s), terminal.Duration(clock.Since(begun)))
			return nil
		},
	}
	return impact(a.tables(c), "read")
}

func damageHint(s inspect.Summary) string {
	padding := false
	for _, d := range s.Damage {
		padding = padding || d.Padding
		if !d.Rebuilt && !d.Padding {
			return "the broker keeps damaged partitions apart and serves nothing of them; restore them from a replica or a backup"
		}
	}
	if padding {
		return "every record is whole, and is served; check the disk and the memory of this machine, and keep a backup"
	}
	return "nothing is lost: the broker makes these files again at its next start"
}

// printSummary prints the damage; with -v, or in a format for machines, all partitions too.
func (a *app) printSummary(s inspect.Summary) error {
	parts := table{columns: []string{"topic", "partition", "start", "end", "records", "segments", "bytes", "damage", "+directory"}}
	for _, p := range s.Partitions {
		parts.add(p.Topic, p.Partition, p.StartOffset, p.EndOffset, p.Records, p.Segments, p.Bytes, p.Damage, p.Dir)
	}
	damage := table{columns: []string{"file", "position", "rebuilt", "what"}}
	for _, d := range s.Damage {
		damage.add(d.Path, d.Pos, d.Rebuilt, d.What)
	}
	if a.format == "" && !a.verbose {
		if len(damage.rows) == 0 {
			return nil
		}
		return a.printTable(damage)
	}
	return a.printDocuments([]document{{
		fields: []field{
			{"broker", s.Broker}, {"cluster", s.Cluster}, {"segments", s.Segments}, {"frames", s.Frames}, {"batches", s.Batches},
			{"records", s.Records}, {"bytes", s.Bytes}, {"unacknowledged tail bytes", s.TailBytes}, {"state logs", s.StateLogs},
		},
		tables: []section{{"partitions", parts}, {"damage", damage}},
	}})
}

func checked(s inspect.Summary) string {
	text := fmt.Sprintf("no damage: %s, %s, %s in %s, %s", counted(len(s.Partitions), "partition"),
		counted(s.Segments, "segment"), terminal.Counted(s.Records, "record"), terminal.Counted(s.Batches, "batch"), terminal.Bytes(float64(s.Bytes)))
	if s.TailBytes > 0 {
		text += fmt.Sprintf("; at the end, %s never acknowledged", terminal.Bytes(float64(s.TailBytes)))
	}
	return text
}

// verifySummary is verify for the demo.
func verifySummary(dir string) (string, error) {
	s, err := inspect.Verify(fsx.OS(), dir)
	if err == nil && len(s.Damage) > 0 {
		err = fmt.Errorf("%s at %d: %s", s.Damage[0].Path, s.Damage[0].Pos, s.Damage[0].What)
	}
	return checked(s), err
}

func (a *app) debugCommand() *cobra.Command {
	return noun("debug", "Look inside a broker's files", noun("wal", "Look inside the logs of partitions", a.walDump()))
}

func (a *app) walDump() *cobra.Command {
	c := &cobra.Command{
		Use: "dump DIR", Short: "Print the frames of a partition's log, or of all partitions of a data directory",
		Args: exactly("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := fsx.OS().Stat(args[0]); err != nil {
				return fail.With(fail.NotFound, "", fmt.Errorf("dump: %w", err))
			}
			out := bufio.NewWriter(a.stdout)
			err := inspect.Partitions(fsx.OS(), args[0], func(dir string) error {
				if a.format != "json" && a.format != "jsonl" {
					fmt.Fprintf(out, "# %s\n", dir)
				}
				return inspect.Dump(fsx.OS(), dir, func(f inspect.Frame) error { return a.frame(out, f) })
			})
			if err != nil {
				return fmt.Errorf("dump: %w", errors.Join(err, out.Flush()))
			}
			return out.Flush()
		},
	}
	return impact(c, "read")
}

var verdicts = map[uint8]string{0: "void", 1: "accepted", 16: "duplicate", 17: "refused", 18: "withdrawn", 19: "trimmed"}

func (a *app) frame(out *bufio.Writer, f inspect.Frame) error {
	verdict := cmpOr(verdicts[f.Verdict], fmt.Sprint(f.Verdict))
	if a.format == "json" || a.format == "jsonl" {
		o := object{
			{"segment", f.Segment}, {"position", f.Pos}, {"bytes", f.Bytes}, {"crc", fmt.Sprintf("%08x", f.CRC)}, {"index", f.Index},
			{"term", f.Term}, {"type", f.Type}, {"verdict", verdict}, {"base_offset", f.BaseOffset}, {"commit", f.Commit},
			{"synced", f.Synced}, {"meta", fmt.Sprintf("%x", f.Meta)},
		}
		if b := f.Batch; b != nil {
			o = append(o, field{"records", b.Records}, field{"batch_bytes", b.Bytes}, field{"codec", b.Codec}, field{"max_timestamp", b.MaxTimestamp},
				field{"producer_id", b.ProducerID}, field{"producer_epoch", b.ProducerEpoch}, field{"base_sequence", b.BaseSequence})
		}
		writeJSONLine(out, o)
		return nil
	}
	_, err := fmt.Fprintf(out, "%s@%-9d index %-7d term %-3d %-9s offset %-8d bytes %-7d crc %08x commit %d", f.Segment, f.Pos, f.Index, f.Term,
		verdict, f.BaseOffset, f.Bytes, f.CRC, f.Commit)
	if b := f.Batch; b != nil && err == nil {
		_, err = fmt.Fprintf(out, "  %s, %s, %s, producer %d/%d from %d", terminal.Counted(int64(b.Records), "record"), b.Codec,
			time.UnixMilli(b.MaxTimestamp).UTC().Format(time.RFC3339), b.ProducerID, b.ProducerEpoch, b.BaseSequence)
	}
	if err == nil {
		err = out.WriteByte('\n')
	}
	return err
}
