.PHONY: generate lint test build

build:
	go build -trimpath -o tidemark ./cmd/tidemark

# Generated code is checked in; CI fails on a difference.
generate:
	cd tools && go run ./genproto ../proto tidemark/v1/tidemark.proto

lint:
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	go vet ./...
	cd tools && go build -o ../.bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	.bin/staticcheck ./...

test:
	go test ./...
