// Prints PlexTrac's events from NATS JetStream: each one verified, each once, acknowledged only after the work is done.
//
// Environment: SECRET or SECRET_FILE (the webhook's), NATS_URL, NATS_STREAM, NATS_CONSUMER (the durable's name).
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Repeats follow closely, after a reconnect or a restart: as many ids as the bridge remembers by default.
const remembered = 100_000

func secret() ([]byte, error) {
	if file := os.Getenv("SECRET_FILE"); file != "" {
		text, err := os.ReadFile(file)
		return bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r")), err
	}
	if text := os.Getenv("SECRET"); text != "" {
		return []byte(text), nil
	}
	return nil, errors.New("set SECRET or SECRET_FILE")
}

// isGenuine tells whether the body is, byte for byte, what PlexTrac signed. While a secret changes, try both.
func isGenuine(key, body []byte, signature string) bool {
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	given, err := hex.DecodeString(signature)
	return err == nil && hmac.Equal(mac.Sum(nil), given)
}

// handled has source and id of what was done, the last ones only, and forgets them at the end of the process. A real
// consumer keeps them in its database, and writes them in the transaction that does the work: then a crash between the
// work and the acknowledgement cannot make it do the work twice.
type handled struct {
	identities map[string]struct{}
	ring       []string
	next       int
}

func (h *handled) has(identity string) bool {
	_, known := h.identities[identity]
	return known
}

func (h *handled) add(identity string) {
	delete(h.identities, h.ring[h.next])
	h.ring[h.next] = identity
	h.next = (h.next + 1) % len(h.ring)
	h.identities[identity] = struct{}{}
}

// toCloudEvent reads the headers by the official SDK. It has no binding for NATS, but for HTTP, which differs in three
// things: the case of names, that the SDK expects values decoded, and that the type of the content is Content-Type alone.
func toCloudEvent(ctx context.Context, msg jetstream.Msg) (*event.Event, error) {
	headers := http.Header{}
	for name, values := range msg.Headers() {
		if name == "ce-datacontenttype" {
			continue
		}
		value := values[0]
		if strings.HasPrefix(name, "ce-") {
			decoded, err := url.PathUnescape(value)
			if err != nil {
				return nil, err
			}
			value = decoded
		}
		headers.Set(name, value)
	}
	read, err := binding.ToEvent(ctx, cehttp.NewMessage(headers, io.NopCloser(bytes.NewReader(msg.Data()))))
	if err != nil {
		return nil, err
	}
	return read, read.Validate()
}

// work does what your service does with an event, or returns the reason why it cannot be done. Only the signature is
// certain: a field may be absent, null or of another type, and a body that an operator replayed as it is may be any bytes.
func work(event *event.Event) error {
	text := bytes.NewBufferString("null")
	// A map, because the names of a struct's fields would match in any case.
	var payload map[string]json.RawMessage
	if err := json.Unmarshal(event.Data(), &payload); err == nil && payload["text"] != nil {
		text.Reset()
		if err := json.Compact(text, payload["text"]); err != nil {
			return err
		}
	}
	_, err := fmt.Println("event", event.ID(), event.Type(), cmp.Or(event.Subject(), "-"), text)
	return err
}

// refuse ends a message that the bridge did not write: it is never sent again, and JetStream publishes an advisory.
func refuse(msg jetstream.Msg, why string) error {
	fmt.Fprintln(os.Stderr, "refused", msg.Subject(), why)
	return msg.TermWithReason(why)
}

func take(ctx context.Context, msg jetstream.Msg, key []byte, handled *handled) error {
	// First of all, over the raw bytes: a body that is not genuine is never parsed.
	if !isGenuine(key, msg.Data(), msg.Headers().Get("x-authorization-hmac-256")) {
		return refuse(msg, "the signature does not belong to the body")
	}
	event, err := toCloudEvent(ctx, msg)
	if err != nil {
		return refuse(msg, err.Error())
	}
	// Two sources may have the same id.
	identity := event.Source() + " " + event.ID()
	if handled.has(identity) {
		fmt.Fprintln(os.Stderr, "repeat", event.ID())
		return msg.Ack()
	}
	// Fields that are not as PlexTrac documents them: a service that depends on one checks it here.
	if deviations := msg.Headers().Get("x-plextrac-deviations"); deviations != "" {
		fmt.Fprintln(os.Stderr, "deviates", event.ID(), deviations)
	}
	if err := work(event); err != nil {
		return errors.Join(err, msg.Nak()) // to be sent again at once, not only after AckWait
	}
	handled.add(identity)
	return msg.DoubleAck(ctx)
}

func run() error {
	key, err := secret()
	if err != nil {
		return err
	}
	stopped, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	connection, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	consumer, err := stream.CreateOrUpdateConsumer(stopped, cmp.Or(os.Getenv("NATS_STREAM"), "PLEXTRAC"),
		jetstream.ConsumerConfig{
			Durable:   cmp.Or(os.Getenv("NATS_CONSUMER"), "plextrac-example"),
			AckPolicy: jetstream.AckExplicitPolicy,
			// One at a time keeps the order; with more, what is not acknowledged is delivered again, behind later messages.
			MaxAckPending: 1,
		})
	if err != nil {
		return err
	}
	handled := &handled{identities: make(map[string]struct{}), ring: make([]string, remembered)}
	for stopped.Err() == nil {
		// One by one: a request for the next message that is open during the work would take this one, if it fails, again.
		msg, err := consumer.Next(jetstream.FetchContext(stopped))
		switch {
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.Canceled):
			continue // no message arrived, or the signal did
		case errors.Is(err, jetstream.ErrNoHeartbeat):
			fmt.Fprintln(os.Stderr, "waiting", err) // the client reconnects by itself
			continue
		case err != nil:
			return err
		}
		// What has begun is finished, also after the signal: hence not `stopped`.
		if err := take(context.Background(), msg, key, handled); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error", err)
		os.Exit(1)
	}
}
