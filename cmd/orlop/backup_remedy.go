package main

import (
	"fmt"
	"strings"

	"orlop/internal/backup/destination"
	"orlop/internal/fault"
)

// withRemedy appends to an error of a destination the command that may help. It returns other errors as they are.
func withRemedy(err error) error {
	r, ok := fault.RemedyOf(err)
	if !ok {
		return err
	}
	return fmt.Errorf("%w%s", err, remedy(r, strings.HasSuffix(err.Error(), "?")))
}

// remedy is the end of a message, which may end in a question: what to type.
func remedy(e fault.Remedy, question bool) string {
	at := quoted(e.Destination)
	switch destination.Remedy(e.Code) {
	case destination.InitRepository:
		return fmt.Sprintf(" if no repository was ever made there, make one: orlop backup init %s --key-file FILE", at)
	case destination.ReplaceRepository:
		how := "--unencrypted"
		if e.Encrypted {
			how = "--key-file FILE"
		}
		return fmt.Sprintf(" To make a new one in its place: orlop backup init %s --new %s", at, how)
	case destination.GiveKey:
		return ": use --key-file FILE, or set ORLOP_KEY_FILE"
	case destination.GiveCredentials:
		return ": use --s3-credentials FILE, or set ORLOP_S3_CREDENTIALS, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
	case destination.ListBackups:
		if question {
			return " see orlop backup list " + at
		}
		return ": see orlop backup list " + at
	case destination.ChooseBackup:
		return fmt.Sprintf(": choose one with backup=, see orlop backup list %s --volume-name %s --json", at, quoted(e.Volume))
	case destination.VerifyRepository:
		return fmt.Sprintf("; see orlop backup verify %s", at)
	case destination.VerifyData:
		return fmt.Sprintf(": see orlop backup verify %s --data", at)
	}
	return ""
}
