// Package targets reads the files that describe sites and how to read them.
//
// The main type is [File], a target file: one documented struct tree is the
// single source for keys, types, defaults and docs (REFERENCE.md is generated
// from it). [Load] reads strictly and reports everything wrong with a file at
// once as [Problems], with line, column and remedy. [Worker] is the optional
// scrape.yaml for what several targets share.
//
// It deliberately does nothing with what it has read: it opens no connection,
// starts no browser and writes nothing. What a plugin, a sink or a demo
// understands is told to it by a [Registry].
package targets
