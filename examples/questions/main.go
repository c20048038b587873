// Questions is a web service in which a model writes questions about a topic and rates answers. Both take time, so a
// request starts a background operation. Every client with the operation's ID can watch, read and cancel it.
//
//	go run ./examples/questions -addr 127.0.0.1:8080
//	curl -i 127.0.0.1:8080/questions -H 'Content-Type: application/json' -d '{"topic":"tides"}'
//	curl -N 127.0.0.1:8080/operations/ID/events
//	curl 127.0.0.1:8080/readyz
//
// The service has a web page at /. With OPENAI_API_KEY set, it calls the provider at OPENAI_BASE_URL (OpenAI by
// default) with OPENAI_MODEL. Otherwise it starts a fake provider. Then /questions?fault=timeout, outage, ratelimit,
// truncated or slow shows what a user gets when the provider fails. Eleven quick clicks overload the service itself.
// For a load test with far more requests, run go run ./examples/questions/load.
//
// The engine keeps and runs the operations. This program has the engine memory, which is one process. The program in
// the folder river also has the engine river, for several processes with a PostgreSQL database:
//
//	cd examples/questions/river && go run . -engine river -database postgres://localhost/questions
package main

import "github.com/aiguard-go/aiguard/examples/questions/internal/service"

func main() { service.Main(map[string]service.Open{"memory": service.Memory}) }
