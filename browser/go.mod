module github.com/aiguard-go/aiguard/browser

go 1.26.0

require (
	github.com/aiguard-go/aiguard v0.0.0-00010101000000-000000000000
	github.com/chromedp/cdproto v0.160.2
	github.com/chromedp/chromedp v0.23.1
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect
	github.com/sashabaranov/go-openai v1.43.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)

replace github.com/aiguard-go/aiguard => ../
