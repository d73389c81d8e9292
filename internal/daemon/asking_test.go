package daemon

import (
	"context"
	"errors"
	"runtime"
	"testing"
)

func TestAFilesystemThatDoesNotAnswerIsNotAskedAgainUntilItDoes(t *testing.T) {
	var a asking
	asked, hang := 0, make(chan struct{})
	question := func() (int, error) {
		asked++
		<-hang
		return asked, nil
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if answer, ok := ask(gone, &a, "fill", question); ok {
			t.Errorf("answered %d", answer)
		}
	}
	if _, ok := ask(t.Context(), &a, "another", func() (int, error) { return 0, nil }); !ok {
		t.Error("one that hangs keeps others from being asked")
	}
	close(hang)
	for a.isOverdue("fill") {
		runtime.Gosched()
	}
	if answer, ok := ask(t.Context(), &a, "fill", question); !ok || answer != 2 {
		t.Errorf("answer %d, %v: want the second", answer, ok)
	}
	if _, ok := ask(t.Context(), &a, "fill", func() (int, error) { return 0, errors.New("no") }); ok {
		t.Error("a failure counts as an answer")
	}
}
