package server

import (
	"net/http"

	"orlop/internal/fault"
)

// statuses is the HTTP status of each kind of failure.
var statuses = map[fault.Kind]int{
	fault.ErrFailed:      http.StatusInternalServerError,
	fault.ErrInvalid:     http.StatusBadRequest,
	fault.ErrNotFound:    http.StatusNotFound,
	fault.ErrExists:      http.StatusConflict,
	fault.ErrInUse:       http.StatusConflict,
	fault.ErrProtected:   http.StatusConflict,
	fault.ErrNoSpace:     http.StatusInsufficientStorage,
	fault.ErrUnreachable: http.StatusBadGateway,
	fault.ErrCorrupt:     http.StatusUnprocessableEntity,
	fault.ErrUnsupported: http.StatusNotImplemented,
}

func status(err error) int {
	if code, ok := statuses[fault.KindOf(err)]; ok {
		return code
	}
	return http.StatusInternalServerError
}
