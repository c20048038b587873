package service_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/examples/questions/internal/service"
	"github.com/aiguard-go/aiguard/examples/questions/internal/servicetest"
	"github.com/aiguard-go/aiguard/task"
)

func TestServiceWithTheEngineMemory(t *testing.T) {
	servicetest.Run(t, servicetest.Suite{Virtual: true, Open: func(t *testing.T, g *aiguard.Guard) task.Engine {
		engine, _, err := service.Memory(t.Context(), g, "")
		require.NoError(t, err)
		return engine
	}})
}
