package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// kinesisClient is the least Kinesis client that signs (Signature Version 4): the benchmark measures the server, so the client must
// cost little.
type kinesisClient struct {
	url, host, id string
	secret        string
	client        *http.Client
}

func newKinesisClient(url, id, secret string) *kinesisClient {
	return &kinesisClient{
		url: url, host: strings.TrimPrefix(url, "http://"), id: id, secret: secret,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128, WriteBufferSize: 256 << 10, ReadBufferSize: 64 << 10}},
	}
}

func mac(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

const kinesisKind = "application/x-amz-json-1.1"

// sign returns the time stamp and the Authorization header of a request.
func (k *kinesisClient) sign(op string, body []byte) (stamp, authorization string) {
	now := time.Now().UTC()
	stamp, day := now.Format("20060102T150405Z"), now.Format("20060102")
	sum := sha256.Sum256(body)
	canonical := "POST\n/\n\ncontent-type:" + kinesisKind + "\nhost:" + k.host + "\nx-amz-date:" + stamp + "\nx-amz-target:" + kinesisTarget + op +
		"\n\ncontent-type;host;x-amz-date;x-amz-target\n" + hex.EncodeToString(sum[:])
	hashed := sha256.Sum256([]byte(canonical))
	scope := day + "/us-east-1/kinesis/aws4_request"
	key := mac(mac(mac(mac([]byte("AWS4"+k.secret), day), "us-east-1"), "kinesis"), "aws4_request")
	signature := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+stamp+"\n"+scope+"\n"+hex.EncodeToString(hashed[:])))
	return stamp, "AWS4-HMAC-SHA256 Credential=" + k.id + "/" + scope + ", SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=" + signature
}

const kinesisTarget = "Kinesis_20131202."

func (k *kinesisClient) do(ctx context.Context, op string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url+"/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	stamp, authorization := k.sign(op, body)
	req.Header.Set("Content-Type", kinesisKind)
	req.Header.Set("X-Amz-Date", stamp)
	req.Header.Set("X-Amz-Target", kinesisTarget+op)
	req.Header.Set("Authorization", authorization)
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close() //nolint:errcheck // an error anyway
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%s: %s: %s", op, resp.Status, b)
	}
	return resp, nil
}

// A kinesisLink is one connection that sends a request after the other without the cost of net/http's client, which for small
// requests is as much as the server's.
type kinesisLink struct {
	k    *kinesisClient
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

func (k *kinesisClient) link(ctx context.Context) (*kinesisLink, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", k.host)
	if err != nil {
		return nil, err
	}
	return &kinesisLink{k: k, conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// call sends a request and returns the answer's body, which is valid until the next call.
func (l *kinesisLink) call(op string, body []byte) ([]byte, error) {
	stamp, authorization := l.k.sign(op, body)
	l.buf = append(l.buf[:0], "POST / HTTP/1.1\r\nHost: "+l.k.host+"\r\nContent-Type: "+kinesisKind+"\r\nX-Amz-Date: "+stamp+
		"\r\nX-Amz-Target: "+kinesisTarget+op+"\r\nAuthorization: "+authorization+"\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...)
	l.buf = append(l.buf, body...)
	if _, err := l.conn.Write(l.buf); err != nil {
		return nil, err
	}
	status, size := "", -1
	for {
		line, err := l.r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		switch text := strings.TrimSpace(string(line)); {
		case text == "" && size < 0:
			return nil, errors.New(op + ": an answer without Content-Length")
		case text == "":
			if cap(l.buf) < size {
				l.buf = make([]byte, size)
			}
			l.buf = l.buf[:size]
			if _, err := io.ReadFull(l.r, l.buf); err != nil {
				return nil, err
			}
			if !strings.HasPrefix(status, "HTTP/1.1 200") {
				return nil, fmt.Errorf("%s: %s: %s", op, status, l.buf)
			}
			return l.buf, nil
		case status == "":
			status = text
		case strings.HasPrefix(text, "Content-Length: "):
			if size, err = strconv.Atoi(text[len("Content-Length: "):]); err != nil {
				return nil, err
			}
		}
	}
}

func (k *kinesisClient) call(ctx context.Context, op string, body []byte) ([]byte, error) {
	resp, err := k.do(ctx, op, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return b, nil
}
