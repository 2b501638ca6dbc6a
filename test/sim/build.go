package sim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

const (
	// worldCommand is what runs inside.
	worldCommand = "github.com/tidemarkhq/tidemark/test/sim/cmd/simworld"
	// keepModules is how many built modules stay in the cache.
	keepModules = 4
	// memoryPages of 64 KiB are what a world may use; it costs only what it uses.
	memoryPages = 2 << 30 >> 16
)

// World is the compiled world, ready to run seeds. It is safe for concurrent use.
type World struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
}

// Load builds the world from the sources in dir (the repository, or below) and compiles it. Both are
// cached in the user's cache directory, by content.
func Load(ctx context.Context, dir string) (*World, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	path, err := build(ctx, dir, cache)
	if err != nil {
		return nil, fmt.Errorf("build the simulated world: %w", err)
	}
	code, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	compiled, err := wazero.NewCompilationCacheWithDir(filepath.Join(cache, "compiled"))
	if err != nil {
		return nil, fmt.Errorf("open the cache of compiled code: %w", err)
	}
	w := &World{runtime: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCompilationCache(compiled).
		// All of the memory at once: growing it would copy what is there.
		WithMemoryLimitPages(memoryPages).WithMemoryCapacityFromMax(true))}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, w.runtime); err != nil {
		return nil, errors.Join(err, w.Close(ctx))
	}
	if w.module, err = w.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.NumCPU()), code); err != nil {
		return nil, errors.Join(fmt.Errorf("compile the simulated world: %w", err), w.Close(ctx))
	}
	return w, nil
}

// Close frees the compiled code. No run may be under way.
func (w *World) Close(ctx context.Context) error { return w.runtime.Close(ctx) }

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir() // no home directory: still correct, only slower
	}
	dir := filepath.Join(base, "tidemark-sim")
	return dir, os.MkdirAll(dir, 0o700)
}

// build makes the module unless the cache holds one of the same content.
func build(ctx context.Context, dir, cache string) (string, error) {
	id, err := goTool(ctx, dir, "list", "-export", "-tags", buildTags, "-f", "{{.BuildID}}", worldCommand)
	if err != nil {
		return "", err
	}
	version, err := goTool(ctx, dir, "version")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(id + version))
	path := filepath.Join(cache, fmt.Sprintf("world-%x.wasm", sum[:12]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	scratch, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	fresh := filepath.Join(scratch, "world.wasm")
	if _, err := goTool(ctx, dir, "build", "-tags", buildTags, "-trimpath", "-o", fresh, worldCommand); err != nil {
		return "", err
	}
	forgetOld(filepath.Join(cache, "world-*.wasm"))
	forgetOld(filepath.Join(cache, "compiled", "*", "*"))
	return path, os.Rename(fresh, path) // whole or not there, whoever builds beside us
}

func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// forgetOld keeps the cache small. Nothing depends on what it removes.
func forgetOld(pattern string) {
	found, _ := filepath.Glob(pattern)
	for len(found) >= keepModules {
		oldest := 0
		for i := range found {
			if modified(found[i]) < modified(found[oldest]) {
				oldest = i
			}
		}
		_ = os.Remove(found[oldest])
		found = append(found[:oldest], found[oldest+1:]...)
	}
}

func modified(path string) int64 {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}
