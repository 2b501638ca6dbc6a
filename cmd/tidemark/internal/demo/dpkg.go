package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/terminal"
	"github.com/tidemarkhq/tidemark/consumer"
)

const dpkgLog = "/var/log/dpkg.log"

// ErrNoLog: this machine has no dpkg log.
var ErrNoLog = errors.New("there is no " + dpkgLog + " here: demo dpkg needs Debian or one of its relatives")

// Dpkg folds the log of the package manager into the installed packages and
// compares them with what the package manager says.
func Dpkg(ctx context.Context, c Config) error {
	in := input{what: dpkgLog, pipe: `awk '$3=="status"{print $5 "\t" $0}' ` + dpkgLog}
	err := eachLine(dpkgLog, func(text string) bool {
		if f := strings.Fields(text); len(f) == 6 && f[2] == "status" {
			in.lines = append(in.lines, line{f[4], text})
		}
		return true
	})
	if errors.Is(err, os.ErrNotExist) || err == nil && len(in.lines) == 0 {
		return ErrNoLog
	}
	if err != nil {
		return err
	}
	return play(ctx, c, func(ctx context.Context, s *show) error { return s.dpkg(ctx, in) })
}

func (s *show) dpkg(ctx context.Context, in input) error {
	if err := s.create(ctx, "dpkg"); err != nil {
		return err
	}
	if _, err := s.load(ctx, "dpkg", in); err != nil {
		return err
	}
	s.command("tidemark consume dpkg -o :end -b %s", s.broker.GRPC)
	installed := map[string]string{}
	err := s.readAll(ctx, "dpkg", func(r consumer.Record) error {
		fold(installed, string(r.Value))
		return nil
	})
	if err != nil {
		return err
	}
	s.say("  folding the log, one package's records in one partition, gives %s installed packages", terminal.Count(int64(len(installed))))
	if err := s.compare(ctx, installed); err != nil {
		return err
	}
	return s.stop(ctx)
}

// fold applies one line: DATE TIME status STATE PACKAGE:ARCH VERSION.
func fold(installed map[string]string, text string) {
	f := strings.Fields(text)
	if len(f) != 6 {
		return
	}
	switch f[3] {
	case "installed":
		installed[f[4]] = f[5]
	case "not-installed", "config-files", "half-installed":
		delete(installed, f[4])
	}
}

func (s *show) compare(ctx context.Context, installed map[string]string) error {
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}:${Architecture} ${Version}\n").Output()
	if errors.Is(err, exec.ErrNotFound) {
		s.say("  there is no dpkg-query to compare with")
		return nil
	}
	if err != nil {
		return fmt.Errorf("dpkg-query: %w", err)
	}
	s.command("dpkg-query -W")
	equal, older := 0, 0
	var wrong []string
	for text := range strings.Lines(string(out)) {
		f := strings.Fields(text)
		if len(f) != 3 || f[0] != "installed" {
			continue
		}
		version, ok := installed[f[1]]
		switch {
		case !ok:
			older++
		case version == f[2]:
			equal++
		default:
			wrong = append(wrong, fmt.Sprintf("%s: the log says %s, dpkg %s", f[1], version, f[2]))
		}
		delete(installed, f[1])
	}
	for name, version := range installed {
		wrong = append(wrong, fmt.Sprintf("%s: the log says %s, dpkg knows nothing", name, version))
	}
	s.say("  %d equal in name and version, %d different; %d installed packages are older than the log", equal, len(wrong), older)
	if len(wrong) > 0 {
		return fmt.Errorf("the folded log differs from dpkg:\n%s", strings.Join(wrong[:min(len(wrong), 10)], "\n"))
	}
	return nil
}
