// Command tidemark is the one binary: the broker, its tools, and the demo.
package main

import (
	"context"
	"os"

	"github.com/tidemarkhq/tidemark/cmd/tidemark/internal/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args)) }
