package kinesisapi

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
)

type apiError interface {
	error
	ErrorCode() string
	ErrorMessage() string
}

// testAccess has a producer that may create and put to my-stream, an admin that may do all, and one with a wrong secret.
func testAccess(t *testing.T, producer, admin, thief *kinesis.Client) {
	ctx := testContext(t)
	denied := func(err error, typ, words string) {
		t.Helper()
		e, ok := errors.AsType[apiError](err)
		if !ok || e.ErrorCode() != typ || !strings.Contains(e.ErrorMessage(), words) {
			t.Errorf("got %v, want %s …%s…", err, typ, words)
		}
	}
	if _, err := producer.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: aws.String("my-stream"), ShardCount: aws.Int32(1)}); err != nil {
		t.Fatal(err)
	}
	put := &kinesis.PutRecordInput{StreamName: aws.String("my-stream"), Data: []byte("x"), PartitionKey: aws.String("k")}
	if _, err := producer.PutRecord(ctx, put); err != nil {
		t.Error(err)
	}
	_, err := producer.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: aws.String("other"), ShardCount: aws.Int32(1)})
	denied(err, "AccessDeniedException", "not authorized to perform: kinesis:CreateStream on resource: arn:aws:kinesis:us-east-1:000000000000:stream/other because no identity-based policy allows")
	_, err = producer.DescribeStream(ctx, &kinesis.DescribeStreamInput{StreamName: aws.String("my-stream")})
	denied(err, "AccessDeniedException", "kinesis:DescribeStream")
	_, err = producer.ListStreams(ctx, &kinesis.ListStreamsInput{})
	denied(err, "AccessDeniedException", "kinesis:ListStreams")
	_, err = thief.PutRecord(ctx, put)
	denied(err, "InvalidSignatureException", "signature we calculated does not match")
	if _, err := admin.DescribeStream(ctx, &kinesis.DescribeStreamInput{StreamName: aws.String("my-stream")}); err != nil {
		t.Error(err)
	}
	// A policy on the stream lets the producer read what its own does not, and denies what its own allows.
	arn := "arn:aws:kinesis:us-east-1:000000000000:stream/my-stream"
	_, err = admin.PutResourcePolicy(ctx, &kinesis.PutResourcePolicyInput{ResourceARN: &arn, Policy: aws.String(`{"Version":"2012-10-17","Statement":[` +
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::000000000000:user/producer"},"Action":"kinesis:DescribeStream","Resource":"` + arn + `"},` +
		`{"Effect":"Deny","Principal":"*","Action":"kinesis:PutRecord","Resource":"` + arn + `"}]}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := producer.DescribeStream(ctx, &kinesis.DescribeStreamInput{StreamName: aws.String("my-stream")}); err != nil {
		t.Error(err)
	}
	_, err = producer.PutRecord(ctx, put)
	denied(err, "AccessDeniedException", "explicit deny")
}
