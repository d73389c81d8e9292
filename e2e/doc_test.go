// Package e2e drives the built orlop program with a real Docker daemon. Both are started on scratch directories of
// their own and ended with everything they left. What a test claims of mounts and loop devices it reads from the
// kernel, never from orlop.
//
// The tests need root and the build tag of that name, dockerd, containerd, runc and a static busybox; no network
// and no image from anywhere.
package e2e
