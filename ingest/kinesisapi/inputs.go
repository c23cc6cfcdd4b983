package kinesisapi

import (
	"time"

	"github.com/milepost/milepost/ingest/kinesisapi/wire"
)

// The members of every input, with the API model's constraints. StreamId is reserved at AWS: accepted and ignored.

//nolint:gochecknoglobals // a table
var rules = wire.Rules{
	Patterns: map[string]string{
		"name":        `[a-zA-Z0-9_.-]+`,
		"streamarn":   `arn:aws.*:kinesis:.*:\d{12}:stream/\S+`,
		"consumerarn": `^(arn):aws.*:kinesis:.*:\d{12}:.*stream\/[a-zA-Z0-9_.-]+\/consumer\/[a-zA-Z0-9_.-]+:[0-9]+`,
		"resourcearn": `arn:aws.*:kinesis:.*:\d{12}:.*stream/\S+`,
		"streamid":    `[a-z0-9]{20}-[a-z0-9]{3}`,
		"hash":        `0|([1-9]\d{0,38})`,
		"sequence":    `0|([1-9]\d{0,128})`,
	},
	Enums: map[string][]string{
		"iterator":     {"AFTER_SEQUENCE_NUMBER", "LATEST", "AT_TIMESTAMP", "AT_SEQUENCE_NUMBER", "TRIM_HORIZON"},
		"filter":       {"AFTER_SHARD_ID", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST", "AT_TIMESTAMP", "FROM_TIMESTAMP"},
		"mode":         {provisioned, onDemand},
		"scaling":      {"UNIFORM_SCALING"},
		"encryption":   {none, kms},
		"distribution": {"AUTO", "USER_PARTITION_KEY"},
		"commitment":   {"ENABLED", "DISABLED"},
	},
}

// streamRef names a stream one way or the other.
type streamRef struct {
	StreamName *string `v:"min=1,max=128,pattern=name"`
	StreamARN  *string `v:"min=1,max=2048,pattern=streamarn"`
	StreamId   *string `v:"min=24,max=24,pattern=streamid"`
}

type modeDetails struct {
	StreamMode *string `v:"required,enum=mode"`
}

type shardFilter struct {
	Type      *string    `v:"required,enum=filter" json:",omitempty"`
	ShardId   *string    `v:"min=1,max=128,pattern=name" json:",omitempty"`
	Timestamp *time.Time `json:",omitempty"`
}

type startingPosition struct {
	Type           *string `v:"required,enum=iterator"`
	SequenceNumber *string `v:"pattern=sequence"`
	Timestamp      *time.Time
}

type commitmentInput struct {
	Status *string `v:"required,enum=commitment"`
}

type (
	noInput struct{}

	addTagsInput struct {
		streamRef
		Tags map[string]string `v:"required,min=1,max=200,keymin=1,keymax=128,itemmin=0,itemmax=256"`
	}
	createStreamInput struct {
		StreamName                 *string `v:"required,min=1,max=128,pattern=name"`
		ShardCount                 *int64  `v:"min=1"`
		StreamModeDetails          *modeDetails
		Tags                       map[string]string `v:"max=200,keymin=1,keymax=128,itemmin=0,itemmax=256"`
		WarmThroughputMiBps        *int64            `v:"min=0"`
		MaxRecordSizeInKiB         *int64            `v:"min=1024,max=10240"`
		RecordDistributionStrategy *string           `v:"enum=distribution"`
	}
	retentionInput struct {
		streamRef
		RetentionPeriodHours *int64 `v:"required"`
	}
	resourceInput struct {
		ResourceARN *string `v:"required,min=1,max=2048,pattern=resourcearn"`
		StreamId    *string
	}
	putPolicyInput struct {
		ResourceARN *string `v:"required,min=1,max=2048,pattern=resourcearn"`
		Policy      *string `v:"required"`
		StreamId    *string
	}
	tagResourceInput struct {
		ResourceARN *string           `v:"required,min=1,max=2048,pattern=resourcearn"`
		Tags        map[string]string `v:"required,min=1,max=200,keymin=1,keymax=128,itemmin=0,itemmax=256"`
		StreamId    *string
	}
	untagResourceInput struct {
		ResourceARN *string  `v:"required,min=1,max=2048,pattern=resourcearn"`
		TagKeys     []string `v:"required,min=1,max=50,itemmin=1,itemmax=128"`
		StreamId    *string
	}
	deleteStreamInput struct {
		streamRef
		EnforceConsumerDeletion *bool
	}
	consumerInput struct {
		StreamARN    *string `v:"min=1,max=2048,pattern=streamarn"`
		ConsumerName *string `v:"min=1,max=128,pattern=name"`
		ConsumerARN  *string `v:"min=1,max=2048,pattern=consumerarn"`
		StreamId     *string
	}
	registerInput struct {
		StreamARN    *string           `v:"required,min=1,max=2048,pattern=streamarn"`
		ConsumerName *string           `v:"required,min=1,max=128,pattern=name"`
		Tags         map[string]string `v:"max=200,keymin=1,keymax=128,itemmin=0,itemmax=256"`
		StreamId     *string
	}
	describeStreamInput struct {
		streamRef
		Limit                 *int64  `v:"min=1,max=10000"`
		ExclusiveStartShardId *string `v:"min=1,max=128,pattern=name"`
	}
	streamInput struct{ streamRef }

	monitoringInput struct {
		streamRef
		ShardLevelMetrics []string `v:"required,min=1,max=7"`
	}
	getRecordsInput struct {
		ShardIterator *string `v:"required,min=1,max=512"`
		Limit         *int64  `v:"min=1,max=10000"`
		StreamARN     *string `v:"min=1,max=2048,pattern=streamarn"`
		DryRun        *bool
		StreamId      *string
	}
	getShardIteratorInput struct {
		streamRef
		ShardId                *string `v:"required,min=1,max=128,pattern=name"`
		ShardIteratorType      *string `v:"required,enum=iterator"`
		StartingSequenceNumber *string `v:"pattern=sequence"`
		Timestamp              *time.Time
		DryRun                 *bool
	}
	listShardsInput struct {
		streamRef
		NextToken               *string `v:"min=1,max=1048576"`
		ExclusiveStartShardId   *string `v:"min=1,max=128,pattern=name"`
		MaxResults              *int64  `v:"min=1,max=10000"`
		StreamCreationTimestamp *time.Time
		ShardFilter             *shardFilter
	}
	listConsumersInput struct {
		StreamARN               *string `v:"required,min=1,max=2048,pattern=streamarn"`
		NextToken               *string `v:"min=1,max=1048576"`
		MaxResults              *int64  `v:"min=1,max=10000"`
		StreamCreationTimestamp *time.Time
		StreamId                *string
	}
	listStreamsInput struct {
		Limit                    *int64  `v:"min=1,max=10000"`
		ExclusiveStartStreamName *string `v:"min=1,max=128,pattern=name"`
		NextToken                *string `v:"min=1,max=1048576"`
	}
	listTagsInput struct {
		streamRef
		ExclusiveStartTagKey *string `v:"min=1,max=128"`
		Limit                *int64  `v:"min=1,max=50"`
	}
	mergeInput struct {
		streamRef
		ShardToMerge         *string `v:"required,min=1,max=128,pattern=name"`
		AdjacentShardToMerge *string `v:"required,min=1,max=128,pattern=name"`
	}
	splitInput struct {
		streamRef
		ShardToSplit       *string `v:"required,min=1,max=128,pattern=name"`
		NewStartingHashKey *string `v:"required,pattern=hash"`
	}
	putRecordInput struct {
		streamRef
		Data                      []byte  `v:"required,min=0,max=10485760"`
		PartitionKey              *string `v:"required,min=1,max=256"`
		ExplicitHashKey           *string `v:"pattern=hash"`
		SequenceNumberForOrdering *string `v:"pattern=sequence"`
		DryRun                    *bool
	}
	putEntry struct {
		Data            []byte  `v:"required,min=0,max=10485760"`
		PartitionKey    *string `v:"required,min=1,max=256"`
		ExplicitHashKey *string `v:"pattern=hash"`
	}
	putRecordsInput struct {
		streamRef
		Records []putEntry `v:"required,min=1,max=500"`
		DryRun  *bool
	}
	removeTagsInput struct {
		streamRef
		TagKeys []string `v:"required,min=1,max=50,itemmin=1,itemmax=128"`
	}
	encryptionInput struct {
		streamRef
		EncryptionType *string `v:"required,enum=encryption"`
		KeyId          *string `v:"required,min=1,max=2048"`
	}
	subscribeInput struct {
		ConsumerARN      *string           `v:"required,min=1,max=2048,pattern=consumerarn"`
		ShardId          *string           `v:"required,min=1,max=128,pattern=name"`
		StartingPosition *startingPosition `v:"required"`
		DryRun           *bool
		StreamId         *string
	}
	updateCountInput struct {
		streamRef
		TargetShardCount *int64  `v:"required,min=1"`
		ScalingType      *string `v:"required,enum=scaling"`
	}
	updateModeInput struct {
		StreamARN           *string      `v:"required,min=1,max=2048,pattern=streamarn"`
		StreamModeDetails   *modeDetails `v:"required"`
		WarmThroughputMiBps *int64       `v:"min=0"`
		StreamId            *string
	}
	updateSizeInput struct {
		StreamARN          *string `v:"required,min=1,max=2048,pattern=streamarn"`
		MaxRecordSizeInKiB *int64  `v:"required,min=1024,max=10240"`
		StreamId           *string
	}
	updateWarmInput struct {
		streamRef
		WarmThroughputMiBps *int64 `v:"required,min=0"`
	}
	updateDistributionInput struct {
		StreamARN                  *string `v:"required,min=1,max=2048,pattern=streamarn"`
		RecordDistributionStrategy *string `v:"required,enum=distribution"`
		StreamId                   *string
	}
	updateAccountInput struct {
		MinimumThroughputBillingCommitment *commitmentInput `v:"required"`
	}
)
