module github.com/aiguard-go/aiguard/integration

go 1.26.0

require (
	github.com/aiguard-go/aiguard v0.0.0
	github.com/sashabaranov/go-openai v1.43.0
	github.com/stretchr/testify v1.12.1
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect

replace github.com/aiguard-go/aiguard => ../
