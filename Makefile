.PHONY: generate lint test build powercut

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

# Power cuts for about so many seconds, as root: make powercut SECONDS=1800
SECONDS ?= 150
powercut:
	TIDEMARK_NO_SKIP=1 go test -count=1 -timeout 5m ./internal/testkit/cutfs
	TIDEMARK_NO_SKIP=1 TIDEMARK_POWERCUT_SECONDS=$(SECONDS) go test -count=1 -timeout $$(($(SECONDS) * 3 + 900))s -v ./test/powercut
