package cutfs

import "syscall"

// write changes a file's content, as far as the quota goes.
func (f *FS) write(n *inode, off int64, data []byte) (int, syscall.Errno) {
	if n.isDir() {
		return 0, syscall.EISDIR
	}
	if data = f.fits(n, off, data); data == nil {
		return 0, syscall.ENOSPC
	}
	f.stats.Writes++
	f.stats.WrittenBytes += int64(len(data))
	size, pages := n.seen.size, len(n.seen.pages)
	n.seen.write(off, data, &n.safe)
	taken := len(n.seen.pages) - pages
	if n.nlink > 0 {
		f.used += int64(taken)
	}
	n.grown = n.grown || n.seen.size != size || taken > 0
	n.pending = append(n.pending, change{off: off, data: append([]byte(nil), data...)})
	n.changed = now()
	return len(data), 0
}

// fits returns the part of data for which there is room, nil when there is none.
func (f *FS) fits(n *inode, off int64, data []byte) []byte {
	room := f.quota - f.used
	for i := off / pageBytes; i*pageBytes < off+int64(len(data)); i++ {
		if n.seen.pages[i] != nil {
			continue
		}
		if room--; room >= 0 {
			continue
		}
		if i*pageBytes <= off {
			return nil
		}
		return data[:i*pageBytes-off]
	}
	return data
}

func (f *FS) truncate(n *inode, size int64) syscall.Errno {
	if n.isDir() {
		return syscall.EISDIR
	}
	pages := len(n.seen.pages)
	n.seen.truncate(size, &n.safe)
	if n.nlink > 0 {
		f.used -= int64(pages - len(n.seen.pages))
	}
	n.grown = true
	n.pending = append(n.pending, change{off: size, truncate: true})
	n.changed = now()
	return 0
}

// find walks a slash-separated path.
func (f *FS) find(path string) *inode {
	n := f.root
	for _, name := range split(path) {
		if n = n.kids[name]; n == nil {
			return nil
		}
	}
	return n
}

func split(path string) []string {
	var names []string
	for i, start := 0, 0; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if i > start {
				names = append(names, path[start:i])
			}
			start = i + 1
		}
	}
	return names
}

// FlipBit changes a stored file, on the disk and as it is seen: bytes rot at rest.
func (f *FS) FlipBit(path string, off int64, bit uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(path)
	if n == nil || n.isDir() || off >= n.seen.size {
		return &syscallError{"flip a bit of", path, syscall.ENOENT}
	}
	b := make([]byte, 1)
	n.seen.read(off, b)
	b[0] ^= 1 << (bit % 8)
	n.seen.write(off, b, &n.safe)
	n.safe.write(off, b, &n.seen)
	return nil
}

// ReadFile returns a file as running processes see it.
func (f *FS) ReadFile(path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(path)
	if n == nil || n.isDir() {
		return nil, &syscallError{"read", path, syscall.ENOENT}
	}
	buf := make([]byte, n.seen.size)
	n.seen.read(0, buf)
	return buf, nil
}

// Walk visits every file with its size, in the order of their paths. The visitor must not call f.
func (f *FS) Walk(visit func(path string, size int64)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	walk(f.root, "", visit)
}

func walk(n *inode, prefix string, visit func(string, int64)) {
	for _, name := range sortedNames(n.kids) {
		if kid := n.kids[name]; kid.isDir() {
			walk(kid, prefix+name+"/", visit)
		} else {
			visit(prefix+name, kid.seen.size)
		}
	}
}

type syscallError struct {
	op, path string
	err      syscall.Errno
}

func (e *syscallError) Error() string { return "cutfs: " + e.op + " " + e.path + ": " + e.err.Error() }
func (e *syscallError) Unwrap() error { return e.err }
